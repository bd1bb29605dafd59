//! `[bench.train]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{MAX_COUNT, count, one, yes};

/// `[bench.train]`: a workload for the command `bench train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchTrainSection {
    /// Rows of an update.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub num_rows: usize,
    /// Smallest and largest number of tokens of a row; every number between
    /// them is equally likely.
    #[schemars(inner(range(min = 2, max = MAX_COUNT)))]
    pub row_tokens: [usize; 2],
    /// Share of the tokens of a row that are trained, its last ones. Default
    /// 1: all but the first, which nothing precedes.
    #[serde(default = "one")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub trained_share: f64,
    /// Most tokens in memory at a time; absent means `sft.micro_batch_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = MAX_COUNT))]
    pub micro_batch_tokens: Option<usize>,
    /// Whether layers are computed again in the backward pass; absent means
    /// `sft.activation_checkpointing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_checkpointing: Option<bool>,
    /// Whether an update clips the gradient and runs AdamW; `false` measures
    /// the gradient alone. Default true.
    #[serde(default = "yes")]
    pub optimizer: bool,
    /// Measured updates, after one that warms up; the median counts. Default
    /// 3.
    #[serde(default = "count::<3>")]
    #[schemars(range(min = 1, max = 1000))]
    pub num_repeats: usize,
}
