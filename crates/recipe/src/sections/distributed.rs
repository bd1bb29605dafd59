//! `[distributed]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::count;

/// `[distributed]`: how ranks work together. It may change between a stop and
/// a resume, and so may the number of ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DistributedSection {
    /// How long ranks wait for each other before the run fails, in seconds.
    /// Longer than what the slowest rank's episodes of a step take more than
    /// the fastest one's. Default 1800.
    #[serde(default = "count::<1800>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub timeout_secs: usize,
    /// Megabytes of gradients or parameters that are exchanged at a time with
    /// `shard = "optimizer"`. An exchange among many ranks takes longer to
    /// begin, so the default is 5 per rank, and at least 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub bucket_mb: Option<usize>,
    /// What the ranks share out. Default `optimizer`.
    #[serde(default)]
    pub shard: Shard,
    /// With `shard = "full"`: how many micro-batches go through a layer each
    /// time that it is gathered. More of them exchange less, and keep the
    /// inputs of all layers of so many micro-batches in memory. Default 1.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = 65_536))]
    pub micro_batches_per_gather: usize,
}

impl Default for DistributedSection {
    fn default() -> Self {
        Self {
            timeout_secs: 1800,
            bucket_mb: None,
            shard: Shard::default(),
            micro_batches_per_gather: 1,
        }
    }
}

/// What the ranks share out between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shard {
    /// The optimizer's moments (`ZeRO`, stage 1): every rank has all weights
    /// and gradients.
    #[default]
    Optimizer,
    /// Weights, gradients and moments (`ZeRO`, stage 3): a layer is gathered
    /// when it is computed with. Sampling gathers the whole model.
    Full,
}

impl DistributedSection {
    /// Bytes that so many ranks exchange at a time.
    pub fn bucket_bytes(&self, num_ranks: usize) -> usize {
        self.bucket_mb.unwrap_or((5 * num_ranks).max(25)) << 20
    }
}
