//! `[sft.optimizer]` and `[grpo.optimizer]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{MAX_COUNT, one, zero};

/// `[sft.optimizer]`, `[grpo.optimizer]`: AdamW, warm-up, decay, clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSection {
    /// Peak learning rate.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub learning_rate: f64,
    /// Steps of linear warm-up from 0 to `learning_rate`. Default 0.
    #[serde(default)]
    #[schemars(range(max = MAX_COUNT))]
    pub warmup_steps: usize,
    /// How the learning rate falls after the warm-up, until the last step.
    /// Default `constant`.
    #[serde(default)]
    pub schedule: Schedule,
    /// Final learning rate as a share of the peak, for `cosine` and `linear`.
    /// Default 0.1.
    #[serde(default = "crate::defaults::min_lr_ratio")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_lr_ratio: f64,
    /// Decay of the first moment. Default 0.9.
    #[serde(default = "crate::defaults::beta1")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95: it follows the changing
    /// gradients of policy optimisation sooner than 0.999.
    #[serde(default = "crate::defaults::beta2")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    #[serde(default = "crate::defaults::adam_eps")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub eps: f64,
    /// Decoupled weight decay, on matrices only. Default 0.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// The gradient's norm is cut to this. Default 1.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_grad_norm: f64,
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Straight line to `min_lr_ratio`.
    Linear,
    /// Half a cosine to `min_lr_ratio`.
    Cosine,
}
