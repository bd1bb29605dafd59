//! The four operators, and how often an expression uses each.

use super::rational::{ArithmeticError, Rational};

/// One of the four operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
}

impl Operator {
    /// All operators.
    pub const ALL: [Self; 4] = [Self::Add, Self::Subtract, Self::Multiply, Self::Divide];

    /// The character that stands for it.
    pub fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
            Self::Multiply => '*',
            Self::Divide => '/',
        }
    }

    pub(super) fn binds_tightly(self) -> bool {
        matches!(self, Self::Multiply | Self::Divide)
    }

    /// `left self right`.
    ///
    /// # Errors
    /// As [`Rational`]'s operations.
    pub fn apply(self, left: Rational, right: Rational) -> Result<Rational, ArithmeticError> {
        match self {
            Self::Add => left.checked_add(right),
            Self::Subtract => left.checked_sub(right),
            Self::Multiply => left.checked_mul(right),
            Self::Divide => left.checked_div(right),
        }
    }
}

/// Uses of each operator, in the order of [`Operator::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OperatorCounts([u8; 4]);

impl OperatorCounts {
    /// Number of uses of `operator`.
    pub fn count(self, operator: Operator) -> usize {
        usize::from(self.0[operator as usize])
    }

    /// The counts of `left operator right`; counts stop at 255, far above any expression's length limit.
    pub(crate) fn combine(left: Self, operator: Operator, right: Self) -> Self {
        let mut counts = left;
        for (count, more) in counts.0.iter_mut().zip(right.0) {
            *count = count.saturating_add(more);
        }
        let own = &mut counts.0[operator as usize];
        *own = own.saturating_add(1);
        counts
    }
}
