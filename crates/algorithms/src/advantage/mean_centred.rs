//! `A_i = R_i - mean(R)` (Dr. GRPO): the recipe's `mean_centred`.

use super::estimator::{AdvantageEstimator, Group};

/// Reward minus the group's mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeanCentred;

impl AdvantageEstimator for MeanCentred {
    fn advantages(&self, group: Group<'_>) -> Vec<f64> {
        let mean = group.mean();
        let rewards = group.rewards().iter();
        rewards.map(|reward| reward - mean).collect()
    }
}
