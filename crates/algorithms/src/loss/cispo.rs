//! Clipped importance weights (CISPO): the recipe's `cispo`.

use std::sync::Arc;

use asyncthink_recipe::GrpoSection;
use serde::Deserialize;
use serde_json::json;
use tch::{Kind, TchError, Tensor};

use super::clip::CLIP_SHARE;
use super::spec::{PolicyLossSpec, refuse_token_clip};
use super::{TokenBatch, TokenGradient, TokenLoss};

/// `cispo` as the recipe names it.
pub(super) const SPEC: PolicyLossSpec = PolicyLossSpec {
    schema: || {
        json!({
            "description": "REINFORCE with clipped importance weights (CISPO): every token keeps a gradient.",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "min_weight": {
                    "description": "Smallest importance weight.",
                    "type": "number",
                    "default": min_weight(),
                    "minimum": 0.0,
                    "maximum": 1.0,
                },
                "max_weight": {
                    "description": "Largest importance weight.",
                    "type": "number",
                    "default": max_weight(),
                    "minimum": 1.0,
                },
            },
        })
    },
    build: |section: &GrpoSection| {
        refuse_token_clip(
            section,
            "set `min_weight` and `max_weight` of `[grpo.loss.cispo]`",
        )?;
        let options: Options = section.loss.parse().map_err(|error| error.to_string())?;
        Ok(Arc::new(Cispo {
            min_weight: options.min_weight,
            max_weight: options.max_weight,
        }))
    },
};

#[derive(Deserialize)]
struct Options {
    #[serde(default = "min_weight")]
    min_weight: f64,
    #[serde(default = "max_weight")]
    max_weight: f64,
}

const fn min_weight() -> f64 {
    0.0
}

/// That of `ScaleRL` (arXiv:2510.13786).
const fn max_weight() -> f64 {
    5.0
}

/// REINFORCE with the probability ratio as a clipped weight without a gradient.
///
/// ```text
/// L = sum_t w_t * -stop_gradient(clip(r_t, min, max)) A_t logp_t
/// ```
///
/// # Paper
/// arXiv:2506.13585, Eq. 4 and 5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cispo {
    /// Smallest weight.
    pub min_weight: f64,
    /// Largest weight.
    pub max_weight: f64,
}

impl TokenLoss for Cispo {
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError> {
        let gradient = tokens
            .logp
            .f_sub(tokens.logp_old)?
            .f_exp()?
            .f_clamp(self.min_weight, self.max_weight)?
            .f_mul(tokens.advantages)?
            .f_mul(tokens.weights)?
            .f_neg()?;
        let loss = gradient.f_mul(tokens.logp)?.f_sum(gradient.kind())?;
        Ok(TokenGradient { loss, gradient })
    }

    fn metrics(&self, tokens: &TokenBatch<'_>) -> Result<Vec<(&'static str, Tensor)>, TchError> {
        let ratio = tokens.logp.f_sub(tokens.logp_old)?.f_exp()?;
        let clipped = ratio
            .f_gt(self.max_weight)?
            .f_logical_or(&ratio.f_lt(self.min_weight)?)?;
        Ok(vec![(CLIP_SHARE, clipped.f_sum(Kind::Double)?)])
    }

    fn metric_names(&self) -> &[&'static str] {
        &[CLIP_SHARE]
    }
}
