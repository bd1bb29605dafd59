//! When two solutions count as different.

use super::expr::Expr;
use super::operator::OperatorCounts;

/// The identity of a solution: the multiset of its numbers and how often it uses each operator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DifferenceKey {
    numbers: Vec<i64>,
    operators: OperatorCounts,
}

impl DifferenceKey {
    pub(crate) fn new(mut numbers: Vec<i64>, operators: OperatorCounts) -> Self {
        numbers.sort_unstable();
        Self { numbers, operators }
    }

    /// The key of an expression.
    pub fn of(expr: &Expr) -> Self {
        Self::new(expr.numbers(), expr.operators())
    }

    /// The numbers in ascending order.
    pub fn numbers(&self) -> &[i64] {
        &self.numbers
    }

    /// The operators.
    pub fn operators(&self) -> OperatorCounts {
        self.operators
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcd::Operator;

    fn key(text: &str) -> DifferenceKey {
        DifferenceKey::of(&Expr::parse(text).unwrap())
    }

    #[test]
    fn order_and_shape_do_not_matter() {
        assert_eq!(key("2*3+4"), key("4+3*2"));
        assert_eq!(key("(2+3)*4"), key("2*(3+4)"));
        assert_eq!(key("2-3-4"), key("2-(3-4)"));
    }

    #[test]
    fn numbers_and_operators_matter() {
        assert_ne!(key("2-3+4"), key("2-(3-4)"));
        assert_ne!(key("2+2"), key("2*2"));
        assert_ne!(key("2+3"), key("2+3+3"));
        assert_eq!(key("6/3-2").operators().count(Operator::Divide), 1);
        assert_eq!(key("6/3-2").numbers(), [2, 3, 6]);
    }
}
