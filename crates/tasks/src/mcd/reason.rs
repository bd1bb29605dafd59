//! Why an item of an answer is no solution.

use crate::grade::Reason;

/// Why an item of an answer does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum McdReason {
    /// More bytes than any honest item needs.
    TooLong,
    /// A character outside the language.
    UnexpectedCharacter,
    /// The characters are allowed but do not form an expression.
    Syntax,
    /// Brackets nested deeper than the limit.
    TooDeep,
    /// Fewer numbers than a solution must use.
    TooFewNumbers,
    /// More numbers than a solution may use.
    TooManyNumbers,
    /// A number that is not in the pool, or is used more often than it is there.
    NumberNotAvailable,
    /// A number that is stated as the value is not the target.
    WrongTarget,
    /// A division by zero.
    DivisionByZero,
    /// An intermediate value that does not fit the exact arithmetic.
    Overflow,
    /// The value is not the target, or that of an expression stated to be equal is not.
    WrongValue,
    /// Correct, but not different from an earlier correct item.
    Duplicate,
    /// Listed after as many items as were asked for; not looked at.
    Surplus,
}

impl McdReason {
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

impl From<McdReason> for Reason {
    fn from(reason: McdReason) -> Self {
        Self::new(reason.as_str())
    }
}

impl std::fmt::Display for McdReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
