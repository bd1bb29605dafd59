//! Learning rate as a function of the step.

use asyncthink_recipe::{OptimizerSection, Schedule};

/// Linear warm-up, then decay to `min_ratio` of the peak at the last step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// Rate at the end of the warm-up.
    pub peak: f64,
    /// Steps of the warm-up; the first of them already moves the weights.
    pub warmup_steps: u64,
    /// Shape after the warm-up.
    pub decay: Schedule,
    /// Final rate over peak rate.
    pub min_ratio: f64,
    /// Steps of the run.
    pub num_steps: u64,
}

impl LearningRate {
    /// The learning rate of an optimizer's section over a run of `num_steps`.
    pub fn of(section: &OptimizerSection, num_steps: u64) -> Self {
        Self {
            peak: section.learning_rate,
            warmup_steps: section.warmup_steps as u64,
            decay: section.schedule,
            min_ratio: section.min_lr_ratio,
            num_steps,
        }
    }

    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let span = self.num_steps.saturating_sub(self.warmup_steps + 1).max(1);
        let share = ((step - self.warmup_steps) as f64 / span as f64).min(1.0);
        let height = match self.decay {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share).cos()),
            Schedule::Linear => 1.0 - share,
            Schedule::Constant => return self.peak,
        };
        self.peak * (self.min_ratio + (1.0 - self.min_ratio) * height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(decay: Schedule) -> LearningRate {
        LearningRate {
            peak: 2.0,
            warmup_steps: 4,
            decay,
            min_ratio: 0.1,
            num_steps: 15,
        }
    }

    #[test]
    fn warm_up_rises_to_the_peak() {
        let rates: Vec<f64> = (0..5).map(|step| rate(Schedule::Cosine).at(step)).collect();
        assert_eq!(rates, [0.5, 1.0, 1.5, 2.0, 2.0]);
    }

    #[test]
    fn the_last_step_has_the_minimum() {
        for decay in [Schedule::Cosine, Schedule::Linear] {
            assert!((rate(decay).at(14) - 0.2).abs() < 1e-12);
            assert!((rate(decay).at(100) - 0.2).abs() < 1e-12);
        }
        assert!((rate(Schedule::Constant).at(14) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn half_way_is_half_way() {
        assert!((rate(Schedule::Linear).at(9) - 1.1).abs() < 1e-12);
        assert!((rate(Schedule::Cosine).at(9) - 1.1).abs() < 1e-12);
    }

    #[test]
    fn no_warm_up_and_one_step_are_fine() {
        let single = LearningRate {
            warmup_steps: 0,
            num_steps: 1,
            ..rate(Schedule::Cosine)
        };
        assert!((single.at(0) - 2.0).abs() < 1e-12);
    }
}
