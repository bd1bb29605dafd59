//! Clipped policy loss (PPO, GRPO) with an optional KL term: the recipe's `clip`.

use std::sync::Arc;

use asyncthink_recipe::{Catalogue, GrpoSection};
use tch::{Kind, TchError, Tensor};

use super::spec::PolicyLossSpec;
use super::{TokenBatch, TokenGradient, TokenLoss, differentiate, k3, weighted_sum};

/// `clip` as the recipe names it. Its settings are keys of `[grpo]`; its own table is empty.
pub(super) const SPEC: PolicyLossSpec = PolicyLossSpec {
    schema: || {
        Catalogue::no_options("Clipped probability ratio. Its options are the keys of `[grpo]`.")
    },
    build: |section| Ok(Arc::new(ClippedPolicyLoss::of(section))),
};

/// Limits of the probability ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// The ratio is clipped below at `1 - low`.
    pub low: f64,
    /// The ratio is clipped above at `1 + high`.
    pub high: f64,
}

/// Clipped policy loss plus `kl_beta` times k3 against a frozen reference.
///
/// ```text
/// L = sum_t w_t * (-min(r_t A_t, clip(r_t) A_t) + kl_beta * k3_t)
/// ```
///
/// # Paper
/// arXiv:2510.26658, section 4: one advantage for every token of an organizer and its workers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClippedPolicyLoss {
    /// Limits of the probability ratio.
    pub clip: Clip,
    /// Weight of the KL term; 0 needs no reference model.
    pub kl_beta: f64,
}

impl ClippedPolicyLoss {
    /// The loss that `[grpo]` describes.
    pub fn of(section: &GrpoSection) -> Self {
        Self {
            clip: Clip {
                low: section.clip_eps_low,
                high: section.clip_eps_high,
            },
            kl_beta: section.kl_beta,
        }
    }
}

/// Share of tokens whose gradient the clip took away.
const CLIP_SHARE: &str = "clip_share";

impl TokenLoss for ClippedPolicyLoss {
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError> {
        differentiate(tokens.logp, |logp| {
            let mut losses = policy_loss(logp, tokens.logp_old, tokens.advantages, self.clip)?;
            if let Some(reference) = tokens.logp_reference {
                let penalty = k3(logp, reference)?;
                losses = losses.f_add(&penalty.f_mul_scalar(self.kl_beta)?)?;
            }
            weighted_sum(&losses, tokens.weights)
        })
    }

    fn metrics(&self, tokens: &TokenBatch<'_>) -> Result<Vec<(&'static str, Tensor)>, TchError> {
        let clipped = is_clipped(tokens.logp, tokens.logp_old, tokens.advantages, self.clip)?;
        Ok(vec![(CLIP_SHARE, clipped.f_sum(Kind::Double)?)])
    }

    fn metric_names(&self) -> &'static [&'static str] {
        &[CLIP_SHARE]
    }

    fn needs_reference(&self) -> bool {
        self.kl_beta > 0.0
    }

    fn has_gradient(&self, advantage: f32) -> bool {
        self.kl_beta > 0.0 || advantage != 0.0
    }
}

/// Clipped policy loss of tokens.
///
/// ```text
/// r_t = exp(logp_t - logp_old_t)
/// l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)
/// ```
///
/// # Shapes
/// All f32 `[trained]`; `logp` carries the gradient.
///
/// # Errors
/// When libtorch refuses an operation.
///
/// # Paper
/// arXiv:2510.26658, section 4: one advantage for every token of an organizer and its workers.
pub fn policy_loss(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    clip: Clip,
) -> Result<Tensor, TchError> {
    let ratio = logp.f_sub(logp_old)?.f_exp()?;
    let clipped = ratio.f_clamp(1.0 - clip.low, 1.0 + clip.high)?;
    ratio
        .f_mul(advantages)?
        .f_minimum(&clipped.f_mul(advantages)?)?
        .f_neg()
}

/// One where the clip took the gradient away: the ratio left the range on the side that its advantage pushes to.
///
/// # Shapes
/// All f32 `[trained]`; returns bool `[trained]`.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn is_clipped(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    clip: Clip,
) -> Result<Tensor, TchError> {
    let ratio = logp.f_sub(logp_old)?.f_exp()?;
    let above = ratio
        .f_gt(1.0 + clip.high)?
        .f_logical_and(&advantages.f_gt(0.0)?)?;
    let below = ratio
        .f_lt(1.0 - clip.low)?
        .f_logical_and(&advantages.f_lt(0.0)?)?;
    above.f_logical_or(&below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(tensor.to_kind(tch::Kind::Double)).unwrap()
    }

    #[test]
    fn ratios_beyond_the_clip_earn_nothing_more() {
        let clip = Clip {
            low: 0.2,
            high: 0.3,
        };
        let logp = vector(&[0.5, 0.5, -0.5, -0.5, 0.1]);
        let old = vector(&[0.0; 5]);
        let advantages = vector(&[1.0, -1.0, 1.0, -1.0, 1.0]);
        let loss = values(&policy_loss(&logp, &old, &advantages, clip).unwrap());
        let (up, down) = (0.5_f64.exp(), (-0.5_f64).exp());
        let expected = [-1.3, up, -down, 0.8, -(0.1_f64.exp())];
        for (got, want) in loss.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let clipped = is_clipped(&logp, &old, &advantages, clip).unwrap();
        assert_eq!(values(&clipped), [1.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn without_a_kl_term_rows_of_no_advantage_have_no_gradient() {
        let clip = Clip {
            low: 0.2,
            high: 0.2,
        };
        let plain = ClippedPolicyLoss { clip, kl_beta: 0.0 };
        assert!(!plain.has_gradient(0.0) && plain.has_gradient(-0.5) && !plain.needs_reference());
        let bound = ClippedPolicyLoss { clip, kl_beta: 0.1 };
        assert!(bound.has_gradient(0.0) && bound.needs_reference());
    }
}
