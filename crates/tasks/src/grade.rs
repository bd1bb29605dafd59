//! What every grader returns.

use serde::{Deserialize, Serialize};

/// Why an item of an answer does not count.
///
/// The snake-case names, as serialised and displayed, are frozen: they appear in `grade` output and in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// More bytes than any honest item needs.
    TooLong,
    /// A character outside digits, `+ - * / ( )`, `=` and blanks.
    UnexpectedCharacter,
    /// The characters are allowed but do not form an expression.
    Syntax,
    /// Parentheses nested deeper than the limit.
    TooDeep,
    /// Fewer numbers than a solution must use.
    TooFewNumbers,
    /// More numbers than a solution may use.
    TooManyNumbers,
    /// A number that is not in the pool, or is used more often than it is there.
    NumberNotAvailable,
    /// The text after `=` is not the target.
    WrongTarget,
    /// A division by zero.
    DivisionByZero,
    /// An intermediate value that does not fit the exact arithmetic.
    Overflow,
    /// The value is not the target.
    WrongValue,
    /// Correct, but not different from an earlier correct item.
    Duplicate,
    /// Listed after as many items as were asked for; not looked at.
    Surplus,
}

impl Reason {
    /// The frozen snake-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::UnexpectedCharacter => "unexpected_character",
            Self::Syntax => "syntax",
            Self::TooDeep => "too_deep",
            Self::TooFewNumbers => "too_few_numbers",
            Self::TooManyNumbers => "too_many_numbers",
            Self::NumberNotAvailable => "number_not_available",
            Self::WrongTarget => "wrong_target",
            Self::DivisionByZero => "division_by_zero",
            Self::Overflow => "overflow",
            Self::WrongValue => "wrong_value",
            Self::Duplicate => "duplicate",
            Self::Surplus => "surplus",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One listed item of an answer and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The item as written, without surrounding blanks; cut if longer than the grader's limit.
    pub text: String,
    /// Whether it counts.
    pub ok: bool,
    /// Why it does not count; `None` exactly when `ok`.
    pub reason: Option<Reason>,
}

/// A graded answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grade {
    /// `min(num_correct, required) / required`, in `[0, 1]`.
    pub reward: f64,
    /// Different correct items among those scored; `correct` in JSON.
    #[serde(rename = "correct")]
    pub num_correct: usize,
    /// Items asked for.
    pub required: usize,
    /// The items in the order written; see the grader for how many are listed.
    pub items: Vec<Item>,
}

impl Grade {
    /// Computes the reward of `num_correct` items.
    pub fn new(num_correct: usize, required: usize, items: Vec<Item>) -> Self {
        let reward = if required == 0 {
            0.0
        } else {
            num_correct.min(required) as f64 / required as f64
        };
        Self {
            reward,
            num_correct,
            required,
            items,
        }
    }

    /// Whether everything that was asked for is there.
    pub fn is_all_correct(&self) -> bool {
        self.required > 0 && self.num_correct >= self.required
    }
}
