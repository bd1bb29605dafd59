//! `[bench.rollout]`.

use asyncthink_protocol::Capacity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{MAX_COUNT, count, one, yes};

/// `[bench.rollout]`: a workload for the command `bench rollout`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchRolloutSection {
    /// Kind of work. Default `plain`.
    #[serde(default)]
    pub workload: RolloutWorkload,
    /// Different prompts.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub num_prompts: usize,
    /// Sequences, or episodes, of each prompt. Default 1.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = 65_536))]
    pub group_size: usize,
    /// Tokens of each prompt, of workers too.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub prompt_tokens: usize,
    /// Tokens that each agent decodes.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub new_tokens: usize,
    /// Measured rollouts, after one that warms up; the median counts. Default
    /// 3.
    #[serde(default = "count::<3>")]
    #[schemars(range(min = 1, max = 1000))]
    pub num_repeats: usize,
    /// Whether the sequences of a group have one prompt, and workers the head
    /// of theirs. Default true, as in training; `false` makes all prompts
    /// differ from their first token, so that nothing can be reused.
    #[serde(default = "yes")]
    pub share_prompts: bool,
    /// Sampling temperature; 0 takes the likeliest token. Default 1, as in
    /// training.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// For `episodes`: size of the agent pool, in place of
    /// `protocol.capacity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u32>", range(min = 2, max = 1024))]
    pub capacity: Option<Capacity>,
    /// For `episodes`: Forks of each episode, all joined. Absent means one for
    /// each worker of the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub num_forks: Option<usize>,
    /// For `episodes`: tokens that each worker returns, which a Join puts into
    /// the organizer's context. Default 32.
    #[serde(default = "count::<32>")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub return_tokens: usize,
}

/// Kind of work of `bench rollout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutWorkload {
    /// A prompt and `new_tokens` sampled tokens, as `generate` of other
    /// libraries.
    #[default]
    Plain,
    /// Organizer-worker episodes with given tokens: Forks, workers that
    /// return, Joins.
    Episodes,
}

impl RolloutWorkload {
    /// The name in the recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Episodes => "episodes",
        }
    }
}

impl BenchRolloutSection {
    /// Tokens of a sub-query in an episode.
    pub const SUB_QUERY_TOKENS: usize = 8;

    /// Tokens that an organizer decodes besides its thoughts: Forks with sub-queries, Joins, an answer, an end of sequence.
    pub fn organizer_tokens(num_forks: usize) -> usize {
        num_forks * (Self::SUB_QUERY_TOKENS + 3) + 4
    }

    /// Tokens of the longest sequence, with what Joins put into it.
    pub fn sequence_tokens(&self, capacity: Capacity) -> usize {
        let injected = match self.workload {
            RolloutWorkload::Plain => 0,
            RolloutWorkload::Episodes => self.forks(capacity) * (self.return_tokens + 1),
        };
        self.prompt_tokens + self.new_tokens + injected
    }

    /// Forks of an episode in a pool.
    pub fn forks(&self, capacity: Capacity) -> usize {
        let all_workers = || usize::try_from(capacity.max_workers()).unwrap_or(usize::MAX);
        self.num_forks.unwrap_or_else(all_workers)
    }

    /// Tokens that a worker decodes besides its thoughts: what it returns, two tags, an end of sequence.
    pub fn worker_tokens(return_tokens: usize) -> usize {
        return_tokens + 3
    }
}
