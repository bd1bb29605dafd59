//! Estimators of the KL from the policy to the reference, and the KL term of the loss.

use asyncthink_recipe::{GrpoSection, KlEstimator, KlPlacement};
use tch::{TchError, Tensor};

/// `beta` times an estimate of `KL(policy || reference)` at every token.
///
/// The tokens are samples of the policy, so the gradient of the expected estimate has a part that goes through the distribution of the
/// tokens, which a term of the loss leaves out. Differentiated where it stands, an estimate has this expected gradient:
///
/// ```text
/// k1   0                          noise only
/// k2   grad KL(policy || reference)
/// k3   grad KL(reference || policy)
/// ```
///
/// Times the probability ratio (`is_bias_corrected`), `k1` and `k3` have `grad KL(policy || reference)`, also off-policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlPenalty {
    /// Weight of the term.
    pub beta: f64,
    /// The estimate.
    pub estimator: KlEstimator,
    /// Whether the estimate is multiplied by the probability ratio.
    pub is_bias_corrected: bool,
}

impl KlPenalty {
    /// The term that `[grpo]` puts into the loss; `None` without one.
    pub fn of(section: &GrpoSection) -> Option<Self> {
        (section.kl_beta > 0.0 && section.kl_in == KlPlacement::Loss).then(|| Self {
            beta: section.kl_beta,
            estimator: section.kl_estimator(),
            is_bias_corrected: section.kl_bias_correction,
        })
    }

    /// The term at every token.
    ///
    /// # Shapes
    /// All f32 `[trained]`; `logp` carries the gradient.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn losses(
        &self,
        logp: &Tensor,
        logp_old: &Tensor,
        logp_ref: &Tensor,
    ) -> Result<Tensor, TchError> {
        let mut estimate = kl_estimate(self.estimator, logp, logp_ref)?;
        if self.is_bias_corrected {
            estimate = estimate.f_mul(&logp.f_sub(logp_old)?.f_exp()?)?;
        }
        estimate.f_mul_scalar(self.beta)
    }
}

/// An estimate of `KL(policy || reference)` at sampled tokens, with `d = logp_ref - logp`: `-d`, `d^2 / 2`, or `exp(d) - d - 1`.
///
/// # Shapes
/// Both f32 `[trained]`; returns f32 `[trained]`.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn kl_estimate(
    estimator: KlEstimator,
    logp: &Tensor,
    logp_ref: &Tensor,
) -> Result<Tensor, TchError> {
    match estimator {
        KlEstimator::K1 => logp.f_sub(logp_ref),
        KlEstimator::K2 => logp.f_sub(logp_ref)?.f_square()?.f_mul_scalar(0.5),
        KlEstimator::K3 => k3(logp, logp_ref),
    }
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

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::super::{differentiate, weighted_sum};
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn k3_is_zero_at_equality_and_positive_elsewhere() {
        let logp = Tensor::from_slice(&[-1.0_f32, -1.0, -1.0]);
        let reference = Tensor::from_slice(&[-1.0_f32, -0.5, -2.0]);
        let got = values(&k3(&logp, &reference).unwrap());
        assert!(got[0].abs() < 1e-7);
        assert!((got[1] - (0.5_f64.exp() - 1.5)).abs() < 1e-6);
        assert!((got[2] - (-1.0_f64).exp()).abs() < 1e-6);
    }

    const LOGITS: [f64; 5] = [0.3, -1.1, 0.9, 0.2, -0.4];
    const OLD: [f64; 5] = [0.1, -0.7, 1.2, -0.3, 0.0];
    const REFERENCE: [f64; 5] = [-0.6, 0.5, 0.4, 0.8, -1.0];

    fn log_softmax(logits: &[f64]) -> Tensor {
        Tensor::from_slice(logits).log_softmax(-1, Kind::Double)
    }

    /// The gradient with respect to the logits that the term has in expectation over tokens of `sampler`: by enumeration of the
    /// vocabulary, each token with its probability as weight.
    fn expected_gradient(penalty: KlPenalty, sampler: &Tensor) -> Vec<f64> {
        let (all, reference) = (log_softmax(&LOGITS), log_softmax(&REFERENCE));
        let coefficients = differentiate(&all, |logp| {
            let losses = penalty.losses(logp, sampler, &reference)?;
            weighted_sum(&losses, &sampler.exp())
        });
        // d logp_x / d logit_j = [x = j] - p_j
        let coefficients = coefficients.unwrap().gradient;
        values(&(&coefficients - all.exp() * coefficients.sum(Kind::Double)))
    }

    /// Gradient of `KL(policy || reference)` by differences of the sum over the vocabulary.
    fn kl_gradient() -> Vec<f64> {
        let reference = log_softmax(&REFERENCE);
        let kl = |logits: &[f64]| {
            let all = log_softmax(logits);
            (all.exp() * (&all - &reference))
                .sum(Kind::Double)
                .double_value(&[])
        };
        (0..LOGITS.len())
            .map(|at| {
                let moved = |by: f64| {
                    let mut logits = LOGITS;
                    logits[at] += by;
                    kl(&logits)
                };
                (moved(1e-5) - moved(-1e-5)) / 2e-5
            })
            .collect()
    }

    fn distance(a: &[f64], b: &[f64]) -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max)
    }

    fn penalty(estimator: KlEstimator, is_bias_corrected: bool) -> KlPenalty {
        KlPenalty {
            beta: 1.0,
            estimator,
            is_bias_corrected,
        }
    }

    #[test]
    fn estimates_in_the_loss_have_the_stated_gradients_by_enumeration() {
        let policy = log_softmax(&LOGITS);
        let kl = kl_gradient();
        let of = |estimator| expected_gradient(penalty(estimator, false), &policy);
        assert!(distance(&of(KlEstimator::K1), &[0.0; 5]) < 1e-12);
        assert!(distance(&of(KlEstimator::K2), &kl) < 1e-8);
        // The gradient of KL(reference || policy) is `policy - reference`.
        let reversed = values(&(policy.exp() - log_softmax(&REFERENCE).exp()));
        assert!(distance(&of(KlEstimator::K3), &reversed) < 1e-12);
        assert!(distance(&of(KlEstimator::K3), &kl) > 0.05);
    }

    #[test]
    fn the_ratio_makes_the_gradients_of_k1_and_k3_those_of_the_kl_on_and_off_policy() {
        let kl = kl_gradient();
        for sampler in [log_softmax(&LOGITS), log_softmax(&OLD)] {
            for estimator in [KlEstimator::K1, KlEstimator::K3] {
                let gradient = expected_gradient(penalty(estimator, true), &sampler);
                assert!(distance(&gradient, &kl) < 1e-8, "{estimator:?}");
            }
        }
        let off_policy = expected_gradient(penalty(KlEstimator::K2, false), &log_softmax(&OLD));
        assert!(distance(&off_policy, &kl) > 0.01);
    }

    /// Taken off the reward, an estimate meets the gradient through the score function, `k * grad log pi`.
    #[test]
    fn k1_in_the_reward_has_the_gradient_of_the_kl_by_enumeration() {
        let (all, reference) = (log_softmax(&LOGITS), log_softmax(&REFERENCE));
        let kl = kl_gradient();
        for (estimator, is_right) in [
            (KlEstimator::K1, true),
            (KlEstimator::K2, false),
            (KlEstimator::K3, false),
        ] {
            let rewards = kl_estimate(estimator, &all, &reference).unwrap();
            let coefficients = rewards * all.exp();
            let gradient = values(&(&coefficients - all.exp() * coefficients.sum(Kind::Double)));
            assert_eq!(distance(&gradient, &kl) < 1e-8, is_right, "{estimator:?}");
        }
        assert_eq!(all.device(), Device::Cpu);
    }
}
