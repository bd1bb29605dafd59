//! Clipped policy loss (PPO, GRPO): the recipe's `clip`.

use std::sync::Arc;

use asyncthink_recipe::GrpoSection;
use serde::Deserialize;
use serde_json::json;
use tch::{Kind, TchError, Tensor};

use super::spec::PolicyLossSpec;
use super::{TokenBatch, TokenGradient, TokenLoss, differentiate, weighted_sum};

/// `clip` as the recipe names it.
pub(super) const SPEC: PolicyLossSpec = PolicyLossSpec {
    schema: || {
        json!({
            "description": "Clipped probability ratio of each token (PPO, GRPO), by `clip_eps_low` and `clip_eps_high` of `[grpo]`.",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "dual_clip": {
                    "description": "Where the advantage is negative, the ratio is clipped at this as well (dual-clip PPO), for \
                                    example 3. Absent means that it is not.",
                    "type": "number",
                    "exclusiveMinimum": 1.0,
                },
            },
        })
    },
    build: |section| {
        let options: Options = section.loss.parse().map_err(|error| error.to_string())?;
        let loss = ClippedPolicyLoss::of(section);
        if let Some(dual) = options
            .dual_clip
            .filter(|dual| *dual <= 1.0 + loss.clip.high)
        {
            return Err(format!(
                "`dual_clip` = {dual} must exceed 1 + `clip_eps_high` = {}: choose for example 3",
                1.0 + loss.clip.high
            ));
        }
        Ok(Arc::new(ClippedPolicyLoss {
            clip: Clip {
                dual: options.dual_clip,
                ..loss.clip
            },
        }))
    },
};

#[derive(Deserialize)]
struct Options {
    dual_clip: Option<f64>,
}

/// Limits of the probability ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// The ratio is clipped below at `1 - low`.
    pub low: f64,
    /// The ratio is clipped above at `1 + high`.
    pub high: f64,
    /// Where the advantage is negative, the ratio is clipped above at this as well.
    pub dual: Option<f64>,
}

/// Clipped policy loss.
///
/// ```text
/// L = sum_t w_t * -min(r_t A_t, clip(r_t) A_t)
/// ```
///
/// # Paper
/// arXiv:2510.26658, section 4: one advantage for every token of an organizer and its workers. Dual clip: arXiv:1912.09729, Eq. 5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClippedPolicyLoss {
    /// Limits of the probability ratio.
    pub clip: Clip,
}

impl ClippedPolicyLoss {
    /// The loss that the keys of `[grpo]` describe.
    pub fn of(section: &GrpoSection) -> Self {
        Self {
            clip: Clip {
                low: section.clip_eps_low,
                high: section.clip_eps_high,
                dual: None,
            },
        }
    }
}

/// Share of tokens whose gradient the clip took away.
pub(super) const CLIP_SHARE: &str = "clip_share";

impl TokenLoss for ClippedPolicyLoss {
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError> {
        differentiate(tokens.logp, |logp| {
            let losses = policy_loss(logp, tokens.logp_old, tokens.advantages, self.clip)?;
            weighted_sum(&losses, tokens.weights)
        })
    }

    fn metrics(&self, tokens: &TokenBatch<'_>) -> Result<Vec<(&'static str, Tensor)>, TchError> {
        let clipped = is_clipped(tokens.logp, tokens.logp_old, tokens.advantages, self.clip)?;
        Ok(vec![(CLIP_SHARE, clipped.f_sum(Kind::Double)?)])
    }

    fn metric_names(&self) -> &[&'static str] {
        &[CLIP_SHARE]
    }
}

/// Clipped policy loss of tokens.
///
/// ```text
/// r_t = exp(logp_t - logp_old_t)
/// l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)        at most -dual A_t where A_t < 0
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
    clipped_loss(&logp.f_sub(logp_old)?.f_exp()?, advantages, clip)
}

/// [`policy_loss`] of given ratios.
pub(super) fn clipped_loss(
    ratio: &Tensor,
    advantages: &Tensor,
    clip: Clip,
) -> Result<Tensor, TchError> {
    let clipped = ratio.f_clamp(1.0 - clip.low, 1.0 + clip.high)?;
    let losses = ratio
        .f_mul(advantages)?
        .f_minimum(&clipped.f_mul(advantages)?)?
        .f_neg()?;
    match clip.dual {
        // A positive advantage has a loss below 0, which the bound leaves alone.
        Some(dual) => losses.f_minimum(&advantages.f_abs()?.f_mul_scalar(dual)?),
        None => Ok(losses),
    }
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
    is_ratio_clipped(&logp.f_sub(logp_old)?.f_exp()?, advantages, clip)
}

/// [`is_clipped`] of given ratios.
pub(super) fn is_ratio_clipped(
    ratio: &Tensor,
    advantages: &Tensor,
    clip: Clip,
) -> Result<Tensor, TchError> {
    let above = ratio
        .f_gt(1.0 + clip.high)?
        .f_logical_and(&advantages.f_gt(0.0)?)?;
    let mut beyond = ratio.f_lt(1.0 - clip.low)?;
    if let Some(dual) = clip.dual {
        beyond = beyond.f_logical_or(&ratio.f_gt(dual)?)?;
    }
    above.f_logical_or(&beyond.f_logical_and(&advantages.f_lt(0.0)?)?)
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
            dual: None,
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
    fn dual_clip_bounds_the_loss_of_negative_advantages_alone() {
        let clip = Clip {
            low: 0.2,
            high: 0.2,
            dual: Some(3.0),
        };
        let logp = vector(&[2.0, 1.0, 2.0, -0.5]);
        let old = vector(&[0.0; 4]);
        let advantages = vector(&[-0.5, -0.5, 0.5, -0.5]);
        let loss = values(&policy_loss(&logp, &old, &advantages, clip).unwrap());
        let expected = [1.5, 0.5 * 1.0_f64.exp(), -0.6, 0.4];
        for (got, want) in loss.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let clipped = is_clipped(&logp, &old, &advantages, clip).unwrap();
        assert_eq!(values(&clipped), [1.0, 0.0, 1.0, 1.0]);
    }
}
