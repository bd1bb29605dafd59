//! `A_i = R_i - mean_{j != i}(R_j)` (RLOO): the recipe's `rloo`.

use super::estimator::{AdvantageEstimator, Group};

/// Reward minus the mean of the group's other rewards (leave-one-out).
///
/// Equal to `n / (n - 1)` times the mean-centred reward. A baseline without the episode's own reward leaves the gradient unbiased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rloo;

impl AdvantageEstimator for Rloo {
    fn advantages(&self, group: Group<'_>) -> Vec<f64> {
        let rewards = group.rewards();
        let sum: f64 = rewards.iter().sum();
        let others = (rewards.len() - 1) as f64;
        rewards
            .iter()
            .map(|reward| reward - (sum - reward) / others)
            .collect()
    }
}
