//! `[precision]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[precision]`: number formats of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrecisionSection {
    /// Format of activations and gradients. Default `f32`.
    #[serde(default)]
    pub compute: NumberFormat,
    /// Format of the weights that the optimizer updates. Default `f32`.
    #[serde(default)]
    pub master: NumberFormat,
    /// Format in which gradients are summed over ranks. Default `f32`.
    #[serde(default)]
    pub reduce: NumberFormat,
}

/// A number format.
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
