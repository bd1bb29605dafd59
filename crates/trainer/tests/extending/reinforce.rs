//! A token loss: REINFORCE with a scale, `l_t = -scale * A_t * logp_t`.

use std::sync::Arc;

use asyncthink_algorithms::loss::PolicyLossSpec;
use asyncthink_algorithms::{TokenBatch, TokenGradient, TokenLoss};
use serde::Deserialize;
use serde_json::json;
use tch::{Kind, TchError, Tensor};

pub(super) const SPEC: PolicyLossSpec = PolicyLossSpec {
    schema: || {
        json!({
            "description": "REINFORCE.",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "scale": {"description": "Factor.", "type": "number", "default": 1.0, "exclusiveMinimum": 0.0},
            },
        })
    },
    build: |section| {
        let options: Options = section.loss.parse().map_err(|error| error.to_string())?;
        Ok(Arc::new(Reinforce {
            scale: options.scale,
        }))
    },
};

#[derive(Deserialize)]
struct Options {
    scale: f64,
}

#[derive(Debug)]
struct Reinforce {
    scale: f64,
}

impl TokenLoss for Reinforce {
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError> {
        let gradient = tokens
            .advantages
            .f_mul(tokens.weights)?
            .f_mul_scalar(-self.scale)?;
        let loss = gradient.f_mul(tokens.logp)?.f_sum(Kind::Float)?;
        Ok(TokenGradient { loss, gradient })
    }

    fn metrics(&self, tokens: &TokenBatch<'_>) -> Result<Vec<(&'static str, Tensor)>, TchError> {
        Ok(vec![(
            "advantage_abs",
            tokens.advantages.f_abs()?.f_sum(Kind::Double)?,
        )])
    }

    fn metric_names(&self) -> &'static [&'static str] {
        &["advantage_abs"]
    }
}
