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
