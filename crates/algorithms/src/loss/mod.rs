//! Losses over trained tokens, one file each.
//!
//! A loss gets detached per-token tensors and returns its value and `dL/dlogp`. Every loss of this framework is a coefficient
//! on `grad log pi`, so the chunked output head needs no more than that vector. Adding one: its file here, and one line in
//! [`registry`].
//!
//! Shape legend: `trained` = tokens with a loss mask of one.

mod clip;
mod cross_entropy;
mod registry;
mod spec;

use std::fmt::Debug;

use tch::{Kind, TchError, Tensor};

pub use clip::{Clip, ClippedPolicyLoss, is_clipped, policy_loss};
pub use cross_entropy::CrossEntropy;
pub use registry::registry;
pub use spec::{BuildLoss, PolicyLossSpec};

/// Trained tokens of a micro-batch, or of one chunk of it. All tensors are detached.
#[derive(Clone, Copy, Debug)]
pub struct TokenBatch<'a> {
    /// Log-probabilities under the weights being trained, f32 `[trained]`.
    pub logp: &'a Tensor,
    /// Log-probabilities under the policy that sampled the tokens, f32 `[trained]`; zeros for supervised rows.
    pub logp_old: &'a Tensor,
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
    fn metric_names(&self) -> &'static [&'static str] {
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

/// Schulman's `k3` estimate of `KL(policy || reference)` at sampled tokens: `exp(d) - d - 1`, `d = logp_ref - logp`.
///
/// Never negative, and unbiased for samples of the policy.
///
/// # Shapes
/// Both f32 `[trained]`; returns f32 `[trained]`.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn k3(logp: &Tensor, logp_ref: &Tensor) -> Result<Tensor, TchError> {
    let difference = logp_ref.f_sub(logp)?;
    // `exp(d) - 1` in one operation: near d = 0, where training lives, the subtraction would leave rounding only.
    difference.f_expm1()?.f_sub(&difference)
}

/// Weighted sum over tokens, a scalar.
pub(crate) fn weighted_sum(losses: &Tensor, weights: &Tensor) -> Result<Tensor, TchError> {
    losses.f_mul(weights)?.f_sum(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k3_is_zero_at_equality_and_positive_elsewhere() {
        let logp = Tensor::from_slice(&[-1.0_f32, -1.0, -1.0]);
        let reference = Tensor::from_slice(&[-1.0_f32, -0.5, -2.0]);
        let got = Vec::<f64>::try_from(k3(&logp, &reference).unwrap().to_kind(Kind::Double));
        let got = got.unwrap();
        assert!(got[0].abs() < 1e-7);
        assert!((got[1] - (0.5_f64.exp() - 1.5)).abs() < 1e-6);
        assert!((got[2] - (-1.0_f64).exp()).abs() < 1e-6);
    }

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
