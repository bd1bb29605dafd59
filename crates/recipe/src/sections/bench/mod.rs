//! `[bench]`.

mod rollout;
mod step;
mod train;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use rollout::{BenchRolloutSection, RolloutWorkload};
pub use step::BenchStepSection;
pub use train::BenchTrainSection;

/// `[bench]`: workloads of the command `bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchSection {
    /// Workload of the command `bench rollout`. Tokens are random and all
    /// agents decode equally many, so that speed depends on the shape of the
    /// model and not on its weights. Neither tokenizer nor task is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<BenchRolloutSection>,
    /// Workload of the command `bench train`: updates of SFT on rows of random
    /// tokens. The other keys of training are those of `[sft]`, or their
    /// defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<BenchTrainSection>,
    /// Workload of the command `bench step`: whole GRPO steps. Every episode is
    /// of one agent that samples `new_tokens` tokens, with an advantage other
    /// than 0. The other keys of training are those of `[grpo]`, or their
    /// defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<BenchStepSection>,
}
