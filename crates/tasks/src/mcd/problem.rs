//! A countdown problem and its rules.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Solutions asked for where a problem does not say: the paper's four.
pub const DEFAULT_REQUIRED: usize = 4;

/// More solutions than this are never asked for; it bounds how many items of an answer are looked at.
const MAX_REQUIRED: usize = 1024;

/// What a solution must obey besides reaching the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rules {
    /// Fewest numbers that a solution uses.
    pub min_numbers: usize,
    /// Most numbers that a solution uses.
    pub max_numbers: usize,
}

impl Default for Rules {
    /// The paper's 3 to 6 numbers.
    fn default() -> Self {
        Self {
            min_numbers: 3,
            max_numbers: 6,
        }
    }
}

/// A countdown problem.
///
/// In JSON `required`, `min_numbers` and `max_numbers` may be left out; other fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawProblem")]
pub struct Problem {
    /// The value that every solution must have.
    pub target: i64,
    /// The pool, a multiset: a number listed twice may be used twice.
    pub available_numbers: Vec<i64>,
    /// Different solutions asked for.
    pub required: usize,
    /// How many numbers a solution uses.
    #[serde(flatten)]
    pub rules: Rules,
}

impl Problem {
    /// A problem whose values have been checked.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if `required` is not in `1..=1024`, the pool is empty, or the rules allow no
    /// number of numbers.
    pub fn new(
        target: i64,
        available_numbers: Vec<i64>,
        required: usize,
        rules: Rules,
    ) -> Result<Self, Error> {
        let invalid = |field, reason, value: String| {
            Err(Error::InvalidProblem {
                field,
                reason,
                value,
            })
        };
        if !(1..=MAX_REQUIRED).contains(&required) {
            return invalid(
                "required",
                "must be between 1 and 1024",
                required.to_string(),
            );
        }
        if available_numbers.is_empty() {
            return invalid("available_numbers", "must not be empty", "[]".to_owned());
        }
        if rules.min_numbers == 0 {
            return invalid("min_numbers", "must be at least 1", "0".to_owned());
        }
        if rules.max_numbers < rules.min_numbers {
            return invalid(
                "max_numbers",
                "must not be below `min_numbers`",
                rules.max_numbers.to_string(),
            );
        }
        Ok(Self {
            target,
            available_numbers,
            required,
            rules,
        })
    }
}

/// The JSON before it is checked.
#[derive(Deserialize)]
struct RawProblem {
    target: i64,
    available_numbers: Vec<i64>,
    required: Option<usize>,
    min_numbers: Option<usize>,
    max_numbers: Option<usize>,
}

impl TryFrom<RawProblem> for Problem {
    type Error = Error;

    fn try_from(raw: RawProblem) -> Result<Self, Error> {
        let default = Rules::default();
        // One bound given alone must not contradict the default of the other.
        let min_numbers = raw.min_numbers.unwrap_or_else(|| {
            default
                .min_numbers
                .min(raw.max_numbers.unwrap_or(usize::MAX))
        });
        let max_numbers = raw
            .max_numbers
            .unwrap_or_else(|| default.max_numbers.max(min_numbers));
        Self::new(
            raw.target,
            raw.available_numbers,
            raw.required.unwrap_or(DEFAULT_REQUIRED),
            Rules {
                min_numbers,
                max_numbers,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_defaults_are_the_papers() {
        let problem: Problem =
            serde_json::from_str(r#"{"target": 6, "available_numbers": [1, 2, 3], "index": 9}"#)
                .unwrap();
        assert_eq!(problem.required, 4);
        assert_eq!(problem.rules, Rules::default());
        let json = serde_json::to_string(&problem).unwrap();
        assert_eq!(
            json,
            r#"{"target":6,"available_numbers":[1,2,3],"required":4,"min_numbers":3,"max_numbers":6}"#
        );
        assert_eq!(serde_json::from_str::<Problem>(&json).unwrap(), problem);
    }

    #[test]
    fn one_bound_alone_moves_the_other() {
        let read = |rules: &str| -> Rules {
            let json = format!(r#"{{"target": 6, "available_numbers": [1, 2], {rules}}}"#);
            serde_json::from_str::<Problem>(&json).unwrap().rules
        };
        let rules = |min_numbers, max_numbers| Rules {
            min_numbers,
            max_numbers,
        };
        assert_eq!(read(r#""max_numbers": 2"#), rules(2, 2));
        assert_eq!(read(r#""min_numbers": 8"#), rules(8, 8));
        assert_eq!(read(r#""min_numbers": 2"#), rules(2, 6));
    }

    #[test]
    fn impossible_problems_are_refused_with_the_field() {
        for (json, field) in [
            (
                r#"{"target": 6, "available_numbers": [1], "required": 0}"#,
                "`required`",
            ),
            (
                r#"{"target": 6, "available_numbers": []}"#,
                "`available_numbers`",
            ),
            (
                r#"{"target": 6, "available_numbers": [1], "min_numbers": 0}"#,
                "`min_numbers`",
            ),
            (
                r#"{"target": 6, "available_numbers": [1], "min_numbers": 3, "max_numbers": 2}"#,
                "`max_numbers`",
            ),
        ] {
            let message = serde_json::from_str::<Problem>(json)
                .unwrap_err()
                .to_string();
            assert!(message.contains(field), "{message}");
        }
    }
}
