//! The weight of the concurrency reward over the run.

use asyncthink_recipe::RewardSection;

/// `lambda` over the run: constant, or a straight line from the first step to the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LambdaSchedule {
    /// Value at the first step.
    pub first: f64,
    /// Value at the last step, where it differs.
    pub last: Option<f64>,
    /// Steps of the run.
    pub num_steps: u64,
}

impl LambdaSchedule {
    /// The schedule of `[grpo.reward]` over a run of `num_steps`.
    pub fn of(section: &RewardSection, num_steps: u64) -> Self {
        Self {
            first: section.lambda,
            last: section.lambda_final,
            num_steps,
        }
    }

    /// The value at step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        let Some(last) = self.last else {
            return self.first;
        };
        let span = self.num_steps.saturating_sub(1).max(1);
        let share = step.min(span) as f64 / span as f64;
        self.first + (last - self.first) * share
    }

    /// The value at the last step.
    pub fn at_end(&self) -> f64 {
        self.at(self.num_steps.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambda_moves_in_a_straight_line() {
        let schedule = LambdaSchedule {
            first: 1.0,
            last: Some(0.0),
            num_steps: 5,
        };
        let values: Vec<f64> = (0..5).map(|step| schedule.at(step)).collect();
        assert_eq!(values, [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert!(schedule.at_end().abs() < 1e-12);
        let constant = LambdaSchedule {
            first: 0.3,
            last: None,
            num_steps: 5,
        };
        assert!((constant.at(4) - 0.3).abs() < 1e-12);
        let single = LambdaSchedule {
            first: 1.0,
            last: Some(0.0),
            num_steps: 1,
        };
        assert!((single.at(0) - 1.0).abs() < 1e-12);
    }
}
