//! When two solutions count as different.

use super::expr::{Expr, Operator};

/// How often each operator is used, in the order of [`Operator::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OperatorCounts([u8; 4]);

impl OperatorCounts {
    /// How often `operator` is used.
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
