//! The line that a benchmark prints. Its first eleven keys are frozen.

use std::io::Write;

use serde::Serialize;

use super::machine::{Ceilings, Machine};
use crate::failure::Failure;

/// The result of a benchmark, with its phases and details.
#[derive(Debug, Serialize)]
pub(crate) struct Line<P, D> {
    pub(crate) bench: &'static str,
    /// The recipe's name.
    pub(crate) shape: String,
    pub(crate) parameters: i64,
    pub(crate) dtype: &'static str,
    pub(crate) device: String,
    /// Tokens over the whole time of the median repeat.
    pub(crate) tokens_per_s: f64,
    /// Operations that the work must take, over those that the machine could have done.
    pub(crate) flops_share: f64,
    pub(crate) ceiling_tflops: f64,
    /// Bytes that the work must read, over those that the machine could have read.
    pub(crate) bandwidth_share: f64,
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) phases: P,
    #[serde(flatten)]
    pub(crate) details: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load_seconds: Option<f64>,
    pub(crate) ceilings: Ceilings,
    pub(crate) machine: Machine,
}

impl<P: Serialize, D: Serialize> Line<P, D> {
    /// Prints the line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn print(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let text = serde_json::to_string(self).map_err(|error| Failure::run(error.to_string()))?;
        Ok(writeln!(out, "{text}")?)
    }
}

/// The repeat of the median rate; of two in the middle, the slower one.
pub(crate) fn median<T>(repeats: &[T], tokens_per_s: impl Fn(&T) -> f64) -> Option<&T> {
    let mut order: Vec<&T> = repeats.iter().collect();
    order.sort_by(|a, b| tokens_per_s(a).total_cmp(&tokens_per_s(b)));
    order.get(order.len().saturating_sub(1) / 2).copied()
}

/// Details of `bench rollout`.
#[derive(Debug, Serialize)]
pub(crate) struct RolloutDetails {
    pub(crate) workload: Workload,
    pub(crate) cache: Cache,
    pub(crate) repeats: Vec<Repeat>,
}

/// Parts of the median repeat.
#[derive(Debug, Serialize)]
pub(crate) struct Phases {
    /// Steps that computed prompts or injected text.
    pub(crate) prefill: Phase,
    /// Steps that computed sampled tokens only.
    pub(crate) decode: Phase,
    /// Everything but steps: the driver.
    pub(crate) driver: Driver,
}

#[derive(Debug, Serialize)]
pub(crate) struct Phase {
    pub(crate) seconds: f64,
    pub(crate) steps: u64,
    /// Rows that went through the model.
    pub(crate) tokens: u64,
    /// Rows a second; null without steps.
    pub(crate) tokens_per_s: Option<f64>,
    /// Those of the rows that sampled a token.
    pub(crate) sampled_tokens: u64,
    pub(crate) flops_share: Option<f64>,
    pub(crate) bandwidth_share: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Driver {
    pub(crate) seconds: f64,
}

/// The recipe's workload.
#[derive(Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) kind: &'static str,
    pub(crate) num_prompts: usize,
    pub(crate) group_size: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) new_tokens: usize,
    pub(crate) share_prompts: bool,
    pub(crate) temperature: f64,
    /// Agents that decode at a time at most.
    pub(crate) max_agents: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) episodes: Option<EpisodeFacts>,
}

/// Episodes of the median repeat.
#[derive(Debug, Serialize)]
pub(crate) struct EpisodeFacts {
    pub(crate) capacity: u32,
    pub(crate) forks: usize,
    pub(crate) return_tokens: usize,
    pub(crate) answered: usize,
    pub(crate) joins: usize,
}

/// The KV cache in the median repeat.
#[derive(Debug, Serialize)]
pub(crate) struct Cache {
    /// Tokens of prompts and injected text.
    pub(crate) given_tokens: u64,
    /// Those that were computed.
    pub(crate) computed_tokens: u64,
    /// Those that the cache held already, or that another agent of the same prompt had computed.
    pub(crate) reused_tokens: u64,
    /// Tokens computed again after a preemption.
    pub(crate) recomputed_tokens: u64,
    /// Agents that lost their blocks.
    pub(crate) preemptions: u64,
    /// Tokens of a block.
    pub(crate) block_size: usize,
    /// Blocks that the cache has.
    pub(crate) blocks: usize,
    /// Most blocks that were held at a time, in all repeats.
    pub(crate) peak_blocks: u64,
    pub(crate) block_bytes: u64,
}

/// A measured rollout.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Repeat {
    pub(crate) seconds: f64,
    pub(crate) decoded_tokens: u64,
    pub(crate) tokens_per_s: f64,
    pub(crate) prefill_seconds: f64,
    pub(crate) decode_seconds: f64,
}
