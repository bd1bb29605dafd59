//! Penalty for the distance to the reference model.

use asyncthink_recipe::KlEstimator;

/// An estimate of `KL(policy || reference)` at a sampled token, to be taken off the reward.
///
/// Summed over the decoded tokens of an episode, `k1` gives the policy gradient of the KL; the others do not.
pub fn kl_of_token(estimator: KlEstimator, logp: f64, logp_ref: f64) -> f64 {
    let difference = logp_ref - logp;
    match estimator {
        KlEstimator::K1 => -difference,
        KlEstimator::K2 => 0.5 * difference * difference,
        KlEstimator::K3 => difference.exp_m1() - difference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_by_hand() {
        let of = |estimator| kl_of_token(estimator, -1.0, -1.5);
        assert!((of(KlEstimator::K1) - 0.5).abs() < 1e-12);
        assert!((of(KlEstimator::K2) - 0.125).abs() < 1e-12);
        assert!((of(KlEstimator::K3) - ((-0.5_f64).exp() - 0.5)).abs() < 1e-12);
    }
}
