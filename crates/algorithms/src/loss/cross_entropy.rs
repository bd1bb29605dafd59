//! Causal-LM cross-entropy of supervised rows.

use tch::TchError;

use super::{TokenBatch, TokenGradient, TokenLoss, differentiate, weighted_sum};

/// `sum_t w_t * -logp_t`, the loss of SFT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossEntropy;

impl TokenLoss for CrossEntropy {
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError> {
        differentiate(tokens.logp, |logp| {
            weighted_sum(&logp.f_neg()?, tokens.weights)
        })
    }

    fn has_gradient(&self, _advantage: f32) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn the_gradient_is_minus_the_weight() {
        let vector = |values: &[f32]| Tensor::from_slice(values);
        let (logp, weights) = (vector(&[-0.5, -2.0]), vector(&[0.25, 0.5]));
        let zeros = vector(&[0.0, 0.0]);
        let TokenGradient { loss, gradient } = CrossEntropy
            .gradient(&TokenBatch {
                logp: &logp,
                logp_old: &zeros,
                logp_sampler: &zeros,
                logp_reference: None,
                advantages: &zeros,
                weights: &weights,
                rows: &zeros.to_kind(Kind::Int64),
                num_rows: 1,
            })
            .unwrap();
        assert!((loss.double_value(&[]) - 1.125).abs() < 1e-6);
        assert_eq!(Vec::<f32>::try_from(gradient).unwrap(), [-0.25, -0.5]);
    }
}
