//! `[bench.step]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{MAX_COUNT, count};

/// `[bench.step]`: a workload for the command `bench step`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchStepSection {
    /// Different prompts of a step.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub num_prompts: usize,
    /// Episodes of each prompt. Default 8.
    #[serde(default = "count::<8>")]
    #[schemars(range(min = 2, max = 65_536))]
    pub group_size: usize,
    /// Tokens of each prompt.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub prompt_tokens: usize,
    /// Tokens that each episode samples.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub new_tokens: usize,
    /// Most tokens of the update in memory at a time; absent means
    /// `grpo.micro_batch_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = MAX_COUNT))]
    pub micro_batch_tokens: Option<usize>,
    /// Whether layers are computed again in the backward pass; absent means
    /// `grpo.activation_checkpointing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_checkpointing: Option<bool>,
    /// Measured steps, after one that warms up; the median counts. Default 3.
    #[serde(default = "count::<3>")]
    #[schemars(range(min = 1, max = 1000))]
    pub num_repeats: usize,
}
