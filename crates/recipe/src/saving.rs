//! When checkpoints are written, and which of them stay.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What may differ from a checkpoint besides keys of the recipe: the training data, and the model that the stage began with.
pub const CHANGEABLE_INPUTS: [&str; 2] = ["dataset", "initial_model"];

/// Whether training goes on while a checkpoint is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaveInBackground {
    /// Where the model is on a GPU: host memory is another memory.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What checkpoints of `sft` are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SftMetric {
    /// Loss on held-out pairs, as measured last.
    #[default]
    HeldOutLoss,
    /// Loss of the step.
    Loss,
}

impl SftMetric {
    /// Its key in `metrics.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            Self::HeldOutLoss => "held_out_loss",
            Self::Loss => "loss",
        }
    }

    /// Whether the smallest figure is the best one.
    pub fn less_is_better(self) -> bool {
        match self {
            Self::HeldOutLoss | Self::Loss => true,
        }
    }
}

/// What checkpoints of `grpo` are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrpoMetric {
    /// Mean reward.
    #[default]
    Reward,
    /// Mean accuracy.
    RewardAccuracy,
    /// Share of episodes with everything right.
    AllCorrect,
    /// Mean concurrency of valid episodes.
    EtaRatio,
    /// Mean reward on validation problems, under the final weight of
    /// concurrency.
    ValidationReward,
    /// Mean accuracy on validation problems.
    ValidationAccuracy,
    /// Share of validation episodes with everything right.
    ValidationAllCorrect,
    /// Mean concurrency of valid validation episodes.
    ValidationEtaRatio,
}

impl GrpoMetric {
    /// Its name, a key of `metrics.jsonl` but for those of `validation`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValidationReward => "validation_reward",
            Self::ValidationAccuracy => "validation_accuracy",
            Self::ValidationAllCorrect => "validation_all_correct",
            Self::ValidationEtaRatio => "validation_eta_ratio",
            Self::Reward => "reward",
            Self::RewardAccuracy => "reward_accuracy",
            Self::AllCorrect => "all_correct",
            Self::EtaRatio => "eta_ratio",
        }
    }

    /// Whether the smallest figure is the best one.
    pub fn less_is_better(self) -> bool {
        match self {
            Self::Reward
            | Self::RewardAccuracy
            | Self::AllCorrect
            | Self::EtaRatio
            | Self::ValidationReward
            | Self::ValidationAccuracy
            | Self::ValidationAllCorrect
            | Self::ValidationEtaRatio => false,
        }
    }
}

/// Format of a copy of the finished model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinalDtype {
    /// bfloat16.
    Bf16,
}

impl FinalDtype {
    /// Name in recipes, and of the folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
        }
    }
}
