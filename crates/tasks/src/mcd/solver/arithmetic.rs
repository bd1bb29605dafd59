//! Expressions that a person would try: whole numbers, exact divisions, operands in a fixed order.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use crate::mcd::expr::Expr;
use crate::mcd::operator::Operator;
use crate::mcd::problem::Problem;
use crate::mcd::rational::Rational;

/// How often a draw is repeated before anything legal is taken.
const MAX_DRAWS: usize = 16;

/// Part of an expression under construction, with its value.
struct Part {
    expr: Expr,
    value: i128,
}

/// Draws an expression over some of the problem's numbers that obeys the rules on how many; its value is any.
///
/// All values on the way are whole and not negative. With `last`, the operator applied last is that one where numbers allow it.
pub(super) fn random_expr(problem: &Problem, last: Option<Operator>, rng: &mut dyn Rng) -> Expr {
    let numbers: Vec<i64> = problem
        .available_numbers
        .iter()
        .copied()
        .filter(|&number| number >= 0)
        .collect();
    let max_numbers = problem.rules.max_numbers.min(numbers.len()).max(1);
    let min_numbers = problem.rules.min_numbers.clamp(1, max_numbers);
    let mut drawn = None;
    for _ in 0..MAX_DRAWS {
        let count = rng.random_range(min_numbers..=max_numbers);
        let chosen: Vec<i64> = numbers.sample(rng, count).copied().collect();
        let (expr, is_as_asked) = random_tree(&chosen, last, rng);
        drawn = Some(expr);
        if is_as_asked {
            break;
        }
    }
    drawn.unwrap_or(Expr::Number(0))
}

/// Joins random parts until one is left; tells whether the last operator is the one asked for.
fn random_tree(numbers: &[i64], last: Option<Operator>, rng: &mut dyn Rng) -> (Expr, bool) {
    let leaf = |&number: &i64| Part {
        expr: Expr::Number(number),
        value: i128::from(number),
    };
    let mut parts: Vec<Part> = numbers.iter().map(leaf).collect();
    let mut is_as_asked = true;
    while parts.len() > 1 {
        let left = parts.swap_remove(rng.random_range(0..parts.len()));
        let right = parts.swap_remove(rng.random_range(0..parts.len()));
        let wanted = last.filter(|_| parts.is_empty());
        let (part, is_wanted) = random_step(left, right, wanted, rng);
        is_as_asked &= is_wanted;
        parts.push(part);
    }
    (
        parts.pop().map_or(Expr::Number(0), |part| part.expr),
        is_as_asked,
    )
}

fn random_step(
    left: Part,
    right: Part,
    wanted: Option<Operator>,
    rng: &mut dyn Rng,
) -> (Part, bool) {
    let mut options = Vec::with_capacity(Operator::ALL.len());
    for operator in Operator::ALL {
        if let Some(value) = sensible_value(operator, left.value, right.value) {
            options.push((operator, value));
        }
    }
    let asked = options
        .iter()
        .find(|(operator, _)| Some(*operator) == wanted)
        .copied();
    // A difference is always sensible, so there is an option.
    let (operator, value) = asked
        .or_else(|| options.choose(rng).copied())
        .unwrap_or((Operator::Subtract, 0));
    let is_larger_first = matches!(operator, Operator::Subtract | Operator::Divide);
    let (first, second) = if (left.value > right.value) == is_larger_first {
        (left, right)
    } else {
        (right, left)
    };
    (
        Part {
            expr: Expr::binary(operator, first.expr, second.expr),
            value,
        },
        wanted.is_none() || asked.is_some(),
    )
}

/// The value of two numbers in their fixed order: the smaller first for `+` and `*`, the larger for `-` and `/`.
fn sensible_value(operator: Operator, left: i128, right: i128) -> Option<i128> {
    let (small, large) = (left.min(right), left.max(right));
    match operator {
        Operator::Add => small.checked_add(large),
        Operator::Subtract => large.checked_sub(small),
        Operator::Multiply => small.checked_mul(large),
        Operator::Divide => (small > 0 && large % small == 0).then(|| large / small),
    }
}

/// The same expression with the operands of `+` and `*` in the fixed order.
pub(super) fn in_fixed_order(expr: &Expr) -> Expr {
    let Expr::Binary {
        operator,
        left,
        right,
    } = expr
    else {
        return expr.clone();
    };
    let (left, right) = (in_fixed_order(left), in_fixed_order(right));
    let is_commutative = matches!(operator, Operator::Add | Operator::Multiply);
    let must_swap = is_commutative
        && whole(&left)
            .zip(whole(&right))
            .is_some_and(|(left, right)| left > right);
    let (left, right) = if must_swap {
        (right, left)
    } else {
        (left, right)
    };
    Expr::binary(*operator, left, right)
}

/// The value as text, and whether it is the target. An expression without a value gives `?`.
pub(super) fn value_text(expr: &Expr, target: i64) -> (String, bool) {
    match expr.evaluate().map(Rational::parts) {
        Ok((numerator, 1)) => (numerator.to_string(), numerator == i128::from(target)),
        Ok((numerator, denominator)) => (format!("{numerator}/{denominator}"), false),
        Err(_) => ("?".to_owned(), false),
    }
}

/// The operator applied last.
pub(super) fn last_operator(expr: &Expr) -> Option<Operator> {
    match expr {
        Expr::Binary { operator, .. } => Some(*operator),
        Expr::Number(_) => None,
    }
}

fn whole(expr: &Expr) -> Option<i128> {
    match expr.evaluate().ok()?.parts() {
        (numerator, 1) => Some(numerator),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::mcd::Rules;

    #[test]
    fn operands_are_ordered() {
        for (text, expected) in [
            ("5*3", "3*5"),
            ("9-3", "9-3"),
            ("8/2+1", "1+8/2"),
            ("2*(5+1)", "2*(1+5)"),
        ] {
            assert_eq!(
                in_fixed_order(&Expr::parse(text).unwrap()).to_string(),
                expected
            );
        }
    }

    #[test]
    fn values_are_judged() {
        let judge = |text: &str| value_text(&Expr::parse(text).unwrap(), 15);
        assert_eq!(judge("3*5"), ("15".to_owned(), true));
        assert_eq!(judge("3-5"), ("-2".to_owned(), false));
        assert_eq!(judge("5/3"), ("5/3".to_owned(), false));
        assert_eq!(judge("5/0"), ("?".to_owned(), false));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn draws_obey_the_rules(numbers in prop::collection::vec(0_i64..100, 1..9), min in 1_usize..5, more in 0_usize..4, seed: u64) {
            let rules = Rules { min_numbers: min, max_numbers: min + more };
            let problem = Problem::new(15, numbers.clone(), 2, rules).unwrap();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for last in [None, Some(Operator::Multiply), Some(Operator::Divide)] {
                let expr = random_expr(&problem, last, &mut rng);
                let (numerator, denominator) = expr.evaluate().unwrap().parts();
                prop_assert!(numerator >= 0 && denominator == 1, "{expr}");
                let mut pool = numbers.clone();
                for number in expr.numbers() {
                    let at = pool.iter().position(|&other| other == number);
                    prop_assert!(at.is_some(), "{expr}");
                    pool.swap_remove(at.unwrap());
                }
                let count = expr.numbers().len();
                prop_assert!(count >= min.min(numbers.len()) && count <= min + more);
                if last == Some(Operator::Multiply) && count > 1 {
                    prop_assert_eq!(last_operator(&expr), last);
                }
                prop_assert_eq!(in_fixed_order(&expr).to_string(), in_fixed_order(&in_fixed_order(&expr)).to_string());
            }
        }
    }
}
