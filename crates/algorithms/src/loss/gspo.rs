//! Group sequence policy optimisation (GSPO): the recipe's `gspo`.

use std::sync::Arc;

use asyncthink_recipe::GrpoSection;
use serde::Deserialize;
use serde_json::json;
use tch::{Kind, TchError, Tensor};

use super::clip::{CLIP_SHARE, Clip, clipped_loss, is_ratio_clipped};
use super::rows::row_means;
use super::spec::{PolicyLossSpec, refuse_token_clip};
use super::{Scope, TokenBatch, TokenGradient, TokenLoss, differentiate, weighted_sum};

/// `gspo` as the recipe names it.
pub(super) const SPEC: PolicyLossSpec = PolicyLossSpec {
    schema: || {
        json!({
            "description": "One clipped probability ratio per agent (GSPO): the geometric mean of the ratios of its tokens.",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "clip_eps_low": {
                    "description": "The ratio is clipped below at 1 minus this.",
                    "type": "number",
                    "default": low(),
                    "exclusiveMinimum": 0.0,
                    "maximum": 1.0,
                },
                "clip_eps_high": {
                    "description": "The ratio is clipped above at 1 plus this.",
                    "type": "number",
                    "default": high(),
                    "exclusiveMinimum": 0.0,
                },
            },
        })
    },
    build: |section: &GrpoSection| {
        refuse_token_clip(
            section,
            "set `clip_eps_low` and `clip_eps_high` of `[grpo.loss.gspo]`",
        )?;
        let options: Options = section.loss.parse().map_err(|error| error.to_string())?;
        Ok(Arc::new(Gspo {
            low: options.clip_eps_low,
            high: options.clip_eps_high,
        }))
    },
};

#[derive(Deserialize)]
struct Options {
    #[serde(default = "low")]
    clip_eps_low: f64,
    #[serde(default = "high")]
    clip_eps_high: f64,
}

/// Ranges of the paper: sequence ratios are far closer to 1 than those of tokens.
const fn low() -> f64 {
    3e-4
}

const fn high() -> f64 {
    4e-4
}

/// Clipped policy loss with one ratio per row.
///
/// ```text
/// s = exp(mean over the row's tokens of (logp_t - logp_old_t))
/// L = sum_t w_t * -min(s A_t, clip(s) A_t)
/// ```
///
/// # Paper
/// arXiv:2507.18071, Eq. 5 to 7. A sequence is a row: an organizer, or one of its workers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gspo {
    /// The ratio is clipped below at `1 - low`.
    pub low: f64,
    /// The ratio is clipped above at `1 + high`.
    pub high: f64,
}

impl Gspo {
    fn clip(self) -> Clip {
        Clip {
            low: self.low,
            high: self.high,
            dual: None,
        }
    }
}

fn ratios(logp: &Tensor, tokens: &TokenBatch<'_>) -> Result<Tensor, TchError> {
    row_means(&logp.f_sub(tokens.logp_old)?, tokens)?.f_exp()
}

impl TokenLoss for Gspo {
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError> {
        differentiate(tokens.logp, |logp| {
            let losses = clipped_loss(&ratios(logp, tokens)?, tokens.advantages, self.clip())?;
            weighted_sum(&losses, tokens.weights)
        })
    }

    fn metrics(&self, tokens: &TokenBatch<'_>) -> Result<Vec<(&'static str, Tensor)>, TchError> {
        let ratios = ratios(tokens.logp, tokens)?;
        let clipped = is_ratio_clipped(&ratios, tokens.advantages, self.clip())?;
        Ok(vec![(CLIP_SHARE, clipped.f_sum(Kind::Double)?)])
    }

    fn metric_names(&self) -> &[&'static str] {
        &[CLIP_SHARE]
    }

    fn scope(&self) -> Scope {
        Scope::Sequence
    }
}
