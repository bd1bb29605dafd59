//! Importance weights against a mismatch of sampler and trainer: truncated (TIS) or masked (`IcePop`).

use asyncthink_recipe::{CorrectionMode, SamplerCorrectionSection};
use tch::{Kind, TchError, Tensor};

use super::rows::row_sums;
use super::{Scope, TokenBatch};

/// Share of tokens whose weight was cut to the largest.
const TRUNCATED_SHARE: &str = "truncated_share";

/// Share of tokens whose weight became 0.
const MASKED_SHARE: &str = "masked_share";

/// Mean weight.
const MEAN_WEIGHT: &str = "sampler_weight";

/// Importance weights of the trainer's policy before the update against the sampler's, without a gradient.
///
/// ```text
/// k_t = exp(logp_old_t - logp_sampler_t)          of a token, or
///       exp(sum over the row of that difference)  of a sequence
/// truncate: min(k, max)       mask: k where min <= k <= max, else 0
/// ```
///
/// # Paper
/// Truncated importance sampling: "Your efficient RL framework secretly brings you off-policy RL training" (2025). `IcePop`: arXiv:2510.18855,
/// section 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerCorrection {
    /// Level of a weight (token or sequence), and treatment beyond the limits (truncate or mask).
    pub mode: CorrectionMode,
    /// Largest weight.
    pub max_weight: f64,
    /// Smallest weight; 0 for none.
    pub min_weight: f64,
}

impl SamplerCorrection {
    /// The weights that `[grpo.sampler_correction]` describes.
    pub fn of(section: &SamplerCorrectionSection) -> Self {
        Self {
            mode: section.mode,
            max_weight: section.max_weight,
            min_weight: section.min_weight.unwrap_or(0.0),
        }
    }

    /// Tokens that one weight looks at.
    pub(super) fn scope(&self) -> Scope {
        match self.mode {
            CorrectionMode::TokenTruncate | CorrectionMode::TokenMask => Scope::Token,
            CorrectionMode::SequenceTruncate | CorrectionMode::SequenceMask => Scope::Sequence,
        }
    }

    fn masks(&self) -> bool {
        matches!(
            self.mode,
            CorrectionMode::TokenMask | CorrectionMode::SequenceMask
        )
    }

    fn ratios(&self, tokens: &TokenBatch<'_>) -> Result<Tensor, TchError> {
        let log_ratios = tokens.logp_old.f_sub(tokens.logp_sampler)?;
        match self.scope() {
            Scope::Token => log_ratios.f_exp(),
            Scope::Sequence => row_sums(&log_ratios, tokens)?.f_exp(),
        }
    }

    fn is_beyond(&self, ratios: &Tensor) -> Result<Tensor, TchError> {
        ratios
            .f_gt(self.max_weight)?
            .f_logical_or(&ratios.f_lt(self.min_weight)?)
    }

    /// The weight of every token.
    ///
    /// # Shapes
    /// Returns f32 `[trained]`.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn weights(&self, tokens: &TokenBatch<'_>) -> Result<Tensor, TchError> {
        let ratios = self.ratios(tokens)?;
        if self.masks() {
            ratios.f_masked_fill(&self.is_beyond(&ratios)?, 0.0)
        } else {
            ratios.f_clamp_max(self.max_weight)
        }
    }

    /// Names of [`Self::metrics`].
    pub(super) fn metric_names(&self) -> [&'static str; 2] {
        let share = if self.masks() {
            MASKED_SHARE
        } else {
            TRUNCATED_SHARE
        };
        [share, MEAN_WEIGHT]
    }

    /// Sums over tokens.
    pub(super) fn metrics(&self, tokens: &TokenBatch<'_>) -> Result<[Tensor; 2], TchError> {
        let ratios = self.ratios(tokens)?;
        Ok([
            self.is_beyond(&ratios)?.f_sum(Kind::Double)?,
            self.weights(tokens)?.f_sum(Kind::Double)?,
        ])
    }
}
