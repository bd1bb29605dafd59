//! `[grpo.sampler_correction]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[grpo.sampler_correction]`: importance weights of the trainer's policy
/// before the update against the sampler's, which multiply the policy loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplerCorrectionSection {
    /// Whether a weight beyond the limits is cut to `max_weight`
    /// (`*_truncate`, TIS) or becomes 0 (`*_mask`, `IcePop`), and whether it is
    /// the ratio of a token or of all decoded tokens of an agent.
    pub mode: CorrectionMode,
    /// Largest weight. Default 2.
    #[serde(default = "crate::defaults::two")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_weight: f64,
    /// Smallest weight, of the modes that mask. Absent means 0: small weights
    /// are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub min_weight: Option<f64>,
}

/// What happens to importance weights beyond the limits, and what they are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CorrectionMode {
    /// A weight a token, cut at the largest.
    TokenTruncate,
    /// A weight a token, 0 beyond the limits.
    TokenMask,
    /// A weight a row, cut at the largest.
    SequenceTruncate,
    /// A weight a row, 0 beyond the limits.
    SequenceMask,
}
