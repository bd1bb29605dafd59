//! `A_i = (R_i - mean(R)) / (std(R) + eps)` (GRPO): the recipe's `mean_std`.

use asyncthink_recipe::GrpoSection;

use super::estimator::{AdvantageEstimator, Group};

/// Reward minus the group's mean, divided by its standard deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeanStd {
    /// Keeps the quotient finite in a group of nearly equal rewards.
    pub eps: f64,
}

impl MeanStd {
    /// The estimator that `[grpo]` describes.
    pub fn of(section: &GrpoSection) -> Self {
        Self {
            eps: section.advantage_eps,
        }
    }
}

impl AdvantageEstimator for MeanStd {
    fn advantages(&self, group: Group<'_>) -> Vec<f64> {
        let mean = group.mean();
        let scale = 1.0 / (group.std() + self.eps);
        let rewards = group.rewards().iter();
        rewards.map(|reward| (reward - mean) * scale).collect()
    }
}
