//! `[precision]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[precision]`: number formats of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrecisionSection {
    /// Format of weights while they compute, of activations and of the
    /// gradient of a layer. With `bf16` the optimizer keeps f32 master
    /// weights, which checkpoints hold, and gradients are summed in f32;
    /// norms, softmax, log-probabilities and losses are computed in f32.
    /// Trainer and sampler see the same bf16 weights. A CPU computes in
    /// `bf16` where it has AVX-512 BF16 or AMX; elsewhere the run says so
    /// and computes in f32. Default `f32`.
    #[serde(default)]
    pub compute: ComputeFormat,
    /// Format of the weights that the optimizer updates. Default `f32`.
    #[serde(default)]
    pub master: NumberFormat,
    /// Format in which gradients are summed over micro-batches and ranks.
    /// Default `f32`.
    #[serde(default)]
    pub reduce: NumberFormat,
    /// Whether a GPU may round the operands of f32 products to TF32, which is
    /// several times as fast and keeps 10 bits of mantissa. Default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tf32: bool,
    /// Whether to compute in `bf16` on a CPU without instructions for it too,
    /// where it is slower than f32. Default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub allow_slow_bf16: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// A number format of computation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputeFormat {
    /// 32-bit floating point.
    #[default]
    F32,
    /// 16-bit floating point with the exponent of 32 bits.
    Bf16,
}

impl ComputeFormat {
    /// Name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// A number format of what is summed or updated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NumberFormat {
    /// 32-bit floating point.
    #[default]
    F32,
}

impl NumberFormat {
    /// Name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
        }
    }
}
