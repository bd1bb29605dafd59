//! Groups of rewards, and the seam of advantage estimators.

use std::fmt::Debug;
use std::sync::Arc;

use asyncthink_recipe::GrpoSection;

/// Rewards of the episodes that answer one prompt; never fewer than two.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a>(&'a [f64]);

impl<'a> Group<'a> {
    /// A group, or `None` for fewer than two rewards.
    pub fn new(rewards: &'a [f64]) -> Option<Self> {
        (rewards.len() >= 2).then_some(Self(rewards))
    }

    /// Rewards, in the order of the episodes.
    pub fn rewards(&self) -> &'a [f64] {
        self.0
    }

    /// Mean reward.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Whether every episode earned the same reward, which leaves nothing to learn from.
    pub fn is_constant(&self) -> bool {
        self.0
            .windows(2)
            .all(|pair| pair[0].to_bits() == pair[1].to_bits())
    }

    /// Sample standard deviation (`n - 1` in the denominator, as TRL and verl have it).
    pub fn std(&self) -> f64 {
        let mean = self.mean();
        let sum: f64 = self.0.iter().map(|reward| (reward - mean).powi(2)).sum();
        (sum / (self.0.len() - 1) as f64).sqrt()
    }

    /// One advantage per episode, in their order.
    ///
    /// A group of equal rewards gets exact zeros: the rounding of the mean must not become a signal that a division by a small
    /// deviation blows up.
    pub fn advantages(self, estimator: &dyn AdvantageEstimator) -> Vec<f64> {
        if self.is_constant() {
            return vec![0.0; self.0.len()];
        }
        estimator.advantages(self)
    }
}

/// Map from the rewards of a group to advantages: a pure function.
pub trait AdvantageEstimator: Debug + Send + Sync {
    /// One advantage per episode of a group whose rewards differ, in their order. Call it through [`Group::advantages`].
    fn advantages(&self, group: Group<'_>) -> Vec<f64>;
}

/// Makes an estimator from `[grpo]`.
pub type BuildAdvantage = fn(&GrpoSection) -> Arc<dyn AdvantageEstimator>;
