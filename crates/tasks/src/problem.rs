//! The sum of all tasks.

use serde::{Deserialize, Serialize};

use crate::grade::Grade;
use crate::mcd;

/// A problem of some task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Problem {
    /// Multi-solution countdown.
    Mcd(mcd::Problem),
}

impl Problem {
    /// The task's name as in `[task.<name>]` and `grade --task <name>`.
    pub fn task_name(&self) -> &'static str {
        match self {
            Self::Mcd(_) => "mcd",
        }
    }

    /// Values for the placeholders of the query template, in a fixed order.
    ///
    /// For [`Problem::Mcd`]: `numbers` (separated by one space), `target`, `required`, `min_numbers`,
    /// `max_numbers`.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Mcd(problem) => problem.fields(),
        }
    }

    /// Grades the text of an answer.
    pub fn grade(&self, answer: &str) -> Grade {
        match self {
            Self::Mcd(problem) => mcd::grade(problem, answer),
        }
    }

    /// The right answer as text where the problem has one: for [`Problem::Mcd`] the target number.
    pub fn target(&self) -> String {
        match self {
            Self::Mcd(problem) => problem.target.to_string(),
        }
    }

    /// How many different correct items earn the full reward.
    pub fn required(&self) -> usize {
        match self {
            Self::Mcd(problem) => problem.required,
        }
    }
}

impl From<mcd::Problem> for Problem {
    fn from(problem: mcd::Problem) -> Self {
        Self::Mcd(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcd::Rules;

    #[test]
    fn the_sum_passes_everything_on() {
        let rules = Rules {
            min_numbers: 2,
            max_numbers: 2,
        };
        let problem = mcd::Problem::new(15, vec![3, 5, 7, 8], 2, rules).unwrap();
        let problem = Problem::from(problem);
        assert_eq!(problem.task_name(), "mcd");
        assert_eq!(problem.target(), "15");
        assert_eq!(problem.required(), 2);
        assert_eq!(problem.grade("3*5; 7+8").num_correct, 2);
        let fields: Vec<String> = problem
            .fields()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            fields.join(", "),
            "numbers=3 5 7 8, target=15, required=2, min_numbers=2, max_numbers=2"
        );
    }
}
