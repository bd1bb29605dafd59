//! Losses over trained tokens, one file each.
//!
//! A loss gets detached per-token tensors and returns its value and `dL/dlogp`. Every loss of this framework is a coefficient
//! on `grad log pi`, so the chunked output head needs no more than that vector. Adding one: its file here, and one line in
//! [`registry`]. [`PolicyObjective`] adds to any of them what `[grpo]` asks for besides: a KL term, an entropy bonus, and weights
//! against a mismatch with the sampler.
//!
//! Shape legend: `trained` = tokens with a loss mask of one.

mod cispo;
mod clip;
mod cross_entropy;
mod gspo;
mod kl;
mod objective;
mod registry;
mod rows;
mod sampler_correction;
mod spec;

use std::fmt::Debug;

use tch::{TchError, Tensor};

pub use cispo::Cispo;
pub use clip::{Clip, ClippedPolicyLoss, is_clipped, policy_loss};
pub use cross_entropy::CrossEntropy;
pub use gspo::Gspo;
pub use kl::{KlPenalty, k3, kl_estimate};
pub use objective::PolicyObjective;
pub use registry::registry;
pub use sampler_correction::SamplerCorrection;
pub use spec::{BuildLoss, PolicyLossSpec};

/// Trained tokens of a micro-batch, or of one chunk of it. All tensors are detached.
#[derive(Clone, Copy, Debug)]
pub struct TokenBatch<'a> {
    /// Log-probabilities under the weights being trained, f32 `[trained]`.
    pub logp: &'a Tensor,
    /// Log-probabilities under the policy that the probability ratio is against, f32 `[trained]`: those of the sampler, or of the
    /// trainer before the first update; zeros for supervised rows.
    pub logp_old: &'a Tensor,
    /// Log-probabilities under the policy that sampled the tokens, f32 `[trained]`; zeros for supervised rows.
    pub logp_sampler: &'a Tensor,
    /// Log-probabilities under the frozen reference model, f32 `[trained]`, where there is one.
    pub logp_reference: Option<&'a Tensor>,
    /// Advantage of each token's episode, f32 `[trained]`.
    pub advantages: &'a Tensor,
    /// Weight of each token in the sum, f32 `[trained]`; carries the normaliser.
    pub weights: &'a Tensor,
    /// Row of the micro-batch that each token belongs to, i64 `[trained]`, in `0 .. num_rows`.
    pub rows: &'a Tensor,
    /// Rows of the micro-batch. One may have no trained token.
    pub num_rows: i64,
}

/// Value and gradient of a loss.
#[derive(Debug)]
pub struct TokenGradient {
    /// `sum_t w_t * l_t`, a scalar.
    pub loss: Tensor,
    /// `dL/dlogp`, f32 `[trained]`.
    pub gradient: Tensor,
}

/// Tokens that one term of a loss looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Each token alone. The loss is evaluated chunk by chunk, inside one pass.
    #[default]
    Token,
    /// All trained tokens of a row. The log-probabilities of the whole micro-batch are computed in a score pass first, and the
    /// loss is evaluated once over them.
    Sequence,
}

/// A loss as a function of log-probabilities.
pub trait TokenLoss: Debug + Send + Sync {
    /// Value and `dL/dlogp` of the tokens. Normaliser: in the weights.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError>;

    /// Named metrics, each as a scalar sum over the tokens of a micro-batch; they are reported as means over trained tokens.
    /// Names and their order never change within a run.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn metrics(&self, _tokens: &TokenBatch<'_>) -> Result<Vec<(&'static str, Tensor)>, TchError> {
        Ok(Vec::new())
    }

    /// Names that [`TokenLoss::metrics`] gives, in its order.
    fn metric_names(&self) -> &[&'static str] {
        &[]
    }

    /// Tokens that one term looks at.
    fn scope(&self) -> Scope {
        Scope::Token
    }

    /// Whether log-probabilities of the reference model are needed.
    fn needs_reference(&self) -> bool {
        false
    }

    /// Weight of the entropy bonus, `-coefficient * sum_t w_t * H_t`, which the output head adds; 0 for none.
    fn entropy_coefficient(&self) -> f64 {
        0.0
    }

    /// Whether a row of this advantage has a gradient. Rows without one are counted in the normaliser and not computed.
    fn has_gradient(&self, advantage: f32) -> bool {
        advantage != 0.0
    }
}

/// Differentiates a loss written as a function of log-probabilities.
///
/// # Shapes
/// `logp` f32 `[trained]`, detached; `loss` returns a scalar.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn differentiate(
    logp: &Tensor,
    loss: impl FnOnce(&Tensor) -> Result<Tensor, TchError>,
) -> Result<TokenGradient, TchError> {
    let leaf = logp.f_detach()?.f_set_requires_grad(true)?;
    let loss = loss(&leaf)?;
    loss.f_backward()?;
    Ok(TokenGradient {
        loss: loss.f_detach()?,
        gradient: leaf.f_grad()?,
    })
}

/// Weighted sum over tokens, a scalar.
pub(crate) fn weighted_sum(losses: &Tensor, weights: &Tensor) -> Result<Tensor, TchError> {
    losses.f_mul(weights)?.f_sum(losses.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn gradients_are_taken_at_the_given_values() {
        let logp = Tensor::from_slice(&[0.5_f32, -1.0]);
        let TokenGradient { loss, gradient } =
            differentiate(&logp, |logp| (logp * logp).f_sum(Kind::Float)).unwrap();
        assert!((loss.double_value(&[]) - 1.25).abs() < 1e-6);
        assert_eq!(Vec::<f32>::try_from(gradient).unwrap(), [1.0, -2.0]);
        assert!(!logp.requires_grad() && !loss.requires_grad());
    }
}
