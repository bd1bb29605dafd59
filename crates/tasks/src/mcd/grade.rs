//! The grader.

use std::collections::{BTreeMap, BTreeSet};

use super::answer::Items;
use super::decoration::is_heading;
use super::expr::{Expr, MAX_EXPRESSION_BYTES};
use super::key::DifferenceKey;
use super::problem::Problem;
use super::rational::{ArithmeticError, Rational};
use super::reading::Reading;
use super::reason::McdReason;
use crate::grade::{Grade, Item};

/// Items that are listed as surplus before the rest of an answer is left unread.
const MAX_SURPLUS_ITEMS: usize = 64;

/// Items that are scored however large `required` is, so that a hand-made problem cannot unbound the work.
const MAX_SCORED_ITEMS: usize = 1024;

/// Grades an answer: one expression per line, or separated by `,` or `;`, each with an optional `= target`, in any of the
/// forms that docs/tasks.md lists.
///
/// Only the first `required` items are scored, right or wrong; each later one is listed with
/// [`McdReason::Surplus`] and never read, so listing guesses cannot raise the expected reward. Items without a digit and
/// headings are no guesses and are skipped. At most 64 surplus items are listed; the text of an item is cut to 512 bytes.
///
/// The time is linear in the answer with a small constant: bytes past the listed items are not looked at.
pub fn grade(problem: &Problem, answer: &str) -> Grade {
    let num_scored = problem.required.min(MAX_SCORED_ITEMS);
    let pool = Pool::new(&problem.available_numbers);
    let mut seen = BTreeSet::new();
    let mut items = Vec::new();
    let mut num_correct = 0;
    for text in Items::of(answer, problem.target) {
        if items.len() == num_scored + MAX_SURPLUS_ITEMS {
            break;
        }
        let reason = if items.len() >= num_scored {
            if is_heading(cut(text)) {
                continue;
            }
            Some(McdReason::Surplus)
        } else {
            match Reading::of(text) {
                Err(_) if is_heading(cut(text)) => continue,
                Err(reason) => Some(reason),
                Ok(reading) => match check(problem, &pool, reading) {
                    Err(reason) => Some(reason),
                    Ok(expr) if seen.insert(DifferenceKey::of(&expr)) => {
                        num_correct += 1;
                        None
                    }
                    Ok(_) => Some(McdReason::Duplicate),
                },
            }
        };
        items.push(Item {
            text: cut(text).to_owned(),
            ok: reason.is_none(),
            reason: reason.map(Into::into),
        });
    }
    Grade::new(num_correct, problem.required, items)
}

/// Checks one item of an answer by itself and gives its expression, whose [`DifferenceKey`] identifies it.
///
/// # Errors
/// The [`McdReason`] why it is no solution; never [`McdReason::Duplicate`] or [`McdReason::Surplus`], which need a list.
pub fn check_solution(problem: &Problem, text: &str) -> Result<Expr, McdReason> {
    check(
        problem,
        &Pool::new(&problem.available_numbers),
        Reading::of(text)?,
    )
}

fn check(problem: &Problem, pool: &Pool, reading: Reading) -> Result<Expr, McdReason> {
    let numbers = reading.solution.numbers();
    pool.check(&numbers)?;
    if numbers.len() < problem.rules.min_numbers {
        return Err(McdReason::TooFewNumbers);
    }
    if numbers.len() > problem.rules.max_numbers {
        return Err(McdReason::TooManyNumbers);
    }
    let target = i128::from(problem.target);
    if reading.claims.iter().any(|&claim| claim != target) {
        return Err(McdReason::WrongTarget);
    }
    let target = Rational::from(problem.target);
    for expr in std::iter::once(&reading.solution).chain(&reading.equals) {
        match expr.evaluate() {
            Ok(value) if value == target => {}
            Ok(_) => return Err(McdReason::WrongValue),
            Err(ArithmeticError::DivisionByZero) => return Err(McdReason::DivisionByZero),
            Err(ArithmeticError::Overflow) => return Err(McdReason::Overflow),
        }
    }
    Ok(reading.solution)
}

/// The numbers of a problem as a multiset.
struct Pool {
    counts: BTreeMap<i64, usize>,
}

impl Pool {
    fn new(numbers: &[i64]) -> Self {
        let mut counts = BTreeMap::new();
        for &number in numbers {
            *counts.entry(number).or_insert(0) += 1;
        }
        Self { counts }
    }

    fn check(&self, numbers: &[i64]) -> Result<(), McdReason> {
        let used = Self::new(numbers);
        for (number, count) in used.counts {
            if self.counts.get(&number).is_none_or(|&have| have < count) {
                return Err(McdReason::NumberNotAvailable);
            }
        }
        Ok(())
    }
}

/// The longest prefix of at most [`MAX_EXPRESSION_BYTES`] bytes.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_EXPRESSION_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grade::Reason;
    use crate::mcd::Rules;
    use proptest::prelude::*;

    fn problem(target: i64, numbers: &[i64], required: usize, used: (usize, usize)) -> Problem {
        let rules = Rules {
            min_numbers: used.0,
            max_numbers: used.1,
        };
        Problem::new(target, numbers.to_vec(), required, rules).unwrap()
    }

    /// Target 24 from a pool with a repeated number, three solutions of two to four numbers.
    fn twenty_four() -> Problem {
        problem(24, &[2, 3, 4, 6, 8, 8, 12], 3, (2, 4))
    }

    fn is(reason: McdReason) -> Reason {
        reason.into()
    }

    fn reasons(problem: &Problem, answer: &str) -> Vec<Option<Reason>> {
        let items = grade(problem, answer).items;
        items.into_iter().map(|item| item.reason.clone()).collect()
    }

    fn reason(problem: &Problem, text: &str) -> McdReason {
        check_solution(problem, text).unwrap_err()
    }

    #[test]
    fn any_separator_and_an_optional_target() {
        let expected = vec![None; 3];
        for answer in [
            "4*6\n3*8\n2*12",
            "4*6, 3*8; 2*12",
            "  4 * 6 = 24 \r\n\r\n(3*8)=24;\n\t2*12,",
        ] {
            let graded = grade(&twenty_four(), answer);
            assert_eq!(reasons(&twenty_four(), answer), expected, "{answer}");
            assert!((graded.reward - 1.0).abs() < f64::EPSILON);
            assert!(graded.is_all_correct());
            assert_eq!(graded.items.len(), 3);
        }
    }

    #[test]
    fn every_line_counts_not_only_the_last() {
        let graded = grade(&twenty_four(), "4*6\n3*8\n2+3");
        assert_eq!(graded.num_correct, 2);
        assert!((graded.reward - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_wrong_item_earns_nothing() {
        for answer in ["", "\n,;\n", "2+3", "cannot form 24", "(4*6"] {
            assert!(grade(&twenty_four(), answer).reward.abs() < f64::EPSILON);
        }
        assert!(grade(&twenty_four(), "").items.is_empty());
    }

    #[test]
    fn duplicates_are_found_by_key() {
        let same = reasons(&twenty_four(), "4*6; 6*4; (6)*4 = 24");
        assert_eq!(
            same,
            [
                None,
                Some(is(McdReason::Duplicate)),
                Some(is(McdReason::Duplicate))
            ]
        );
        // Equal as algebra, different in their operators.
        let four = problem(6, &[1, 3, 8], 2, (3, 3));
        assert_eq!(reasons(&four, "8-3+1; 8-(3-1)"), [None, None]);
        // A wrong twin does not make a right one a duplicate.
        assert_eq!(
            reasons(&problem(5, &[2, 7], 2, (2, 2)), "2-7; 7-2"),
            [Some(is(McdReason::WrongValue)), None]
        );
    }

    #[test]
    fn only_the_first_required_items_are_scored() {
        let two = problem(24, &[2, 3, 4, 6, 8, 12], 2, (2, 2));
        let graded = grade(&two, "2+3, 4*6, 3*8, 2*12");
        assert_eq!(graded.num_correct, 1);
        let reasons: Vec<_> = graded
            .items
            .iter()
            .map(|item| item.reason.clone())
            .collect();
        assert_eq!(
            reasons,
            [
                Some(is(McdReason::WrongValue)),
                None,
                Some(is(McdReason::Surplus)),
                Some(is(McdReason::Surplus))
            ]
        );
    }

    // The mistakes of other countdown graders, one test each.

    #[test]
    fn powers_and_floor_division_are_no_operators() {
        let eight = problem(8, &[2, 3, 9, 17], 1, (2, 3));
        assert_eq!(reason(&eight, "2**3"), McdReason::Syntax);
        assert_eq!(reason(&eight, "17//2"), McdReason::Syntax);
        assert_eq!(reason(&eight, "9**9**9"), McdReason::Syntax);
    }

    #[test]
    fn a_decimal_is_not_two_numbers() {
        let problem = problem(3, &[1, 5, 2], 1, (2, 3));
        assert_eq!(reason(&problem, "1.5*2"), McdReason::UnexpectedCharacter);
    }

    #[test]
    fn close_is_not_equal() {
        // 999 + 1/300 passes with a relative tolerance of 1e-5, 998.9999... with 1e-4.
        let near = problem(999, &[999, 1, 300, 1000], 1, (2, 4));
        assert_eq!(reason(&near, "999+1/300"), McdReason::WrongValue);
        assert_eq!(reason(&near, "1000-300/300"), McdReason::NumberNotAvailable);
        assert!(check_solution(&near, "1000-1").is_ok());
    }

    #[test]
    fn repeated_numbers_are_counted() {
        let ones = problem(81, &[1, 81, 1, 1], 1, (4, 4));
        assert_eq!(reason(&ones, "81*1"), McdReason::TooFewNumbers);
        assert!(check_solution(&ones, "81*1*1*1").is_ok());
        let eights = twenty_four();
        assert!(check_solution(&eights, "8+8+2*4").is_ok());
        assert_eq!(reason(&eights, "8+8+8"), McdReason::NumberNotAvailable);
    }

    #[test]
    fn values_are_not_truncated() {
        let three = problem(3, &[7, 2], 1, (2, 2));
        assert_eq!(reason(&three, "7/2"), McdReason::WrongValue);
        assert_eq!(reason(&three, "7/2 = 3"), McdReason::WrongValue);
    }

    #[test]
    fn foreign_numbers_are_refused() {
        assert_eq!(
            reason(&twenty_four(), "5*5-1"),
            McdReason::NumberNotAvailable
        );
        assert_eq!(
            reason(&twenty_four(), "99999999999999999999*0"),
            McdReason::NumberNotAvailable
        );
    }

    #[test]
    fn code_is_text() {
        for text in [
            "__import__('os').abort()",
            "24#",
            "4*6 if 1 else 0",
            "4*6\u{0}",
        ] {
            assert_eq!(reason(&twenty_four(), text), McdReason::UnexpectedCharacter);
        }
    }

    #[test]
    fn negative_and_fractional_intermediates_are_fine() {
        assert!(check_solution(&twenty_four(), "(2-8)*(4-8)").is_ok());
        assert!(check_solution(&problem(24, &[3, 3, 8, 8], 1, (4, 4)), "8/(3-8/3)").is_ok());
    }

    #[test]
    fn division_by_zero_and_overflow_are_wrong_solutions() {
        assert_eq!(reason(&twenty_four(), "2/(8-8)"), McdReason::DivisionByZero);
        let big = i64::MAX;
        let huge = problem(1, &[big, big, big, big], 1, (2, 4));
        assert_eq!(
            reason(&huge, &format!("{big}*{big}*{big}*{big}")),
            McdReason::Overflow
        );
        assert!(check_solution(&huge, &format!("{big}*{big}/{big}/{big}")).is_ok());
    }

    #[test]
    fn counts_of_numbers_are_bounded() {
        assert_eq!(
            reason(&problem(24, &[24], 1, (2, 2)), "24"),
            McdReason::TooFewNumbers
        );
        assert_eq!(
            reason(&twenty_four(), "2+3+4+6+8"),
            McdReason::TooManyNumbers
        );
    }

    #[test]
    fn the_claimed_target_must_be_the_target() {
        let problem = twenty_four();
        assert_eq!(reason(&problem, "4*6=25"), McdReason::WrongTarget);
        assert_eq!(reason(&problem, "4*6=-24"), McdReason::WrongTarget);
        assert_eq!(
            reason(&problem, "4*6=99999999999999999999"),
            McdReason::WrongTarget
        );
        assert_eq!(reason(&problem, "4*6=3*8"), McdReason::Syntax);
        assert_eq!(reason(&problem, "4*6="), McdReason::Syntax);
        assert_eq!(reason(&problem, "25=4*6"), McdReason::WrongTarget);
        assert_eq!(reason(&problem, "4*6=24=25"), McdReason::WrongTarget);
        assert_eq!(reason(&problem, "24=4*6=2*3"), McdReason::WrongValue);
        assert_eq!(reason(&problem, "2+3=4*6=24"), McdReason::WrongValue);
        assert_eq!(reason(&problem, "24==4*6"), McdReason::Syntax);
        assert_eq!(reason(&problem, "24"), McdReason::NumberNotAvailable);
        assert_eq!(reason(&problem, "24=24"), McdReason::NumberNotAvailable);
        for text in ["4*6=24=24", "24=4*6", "2*(4+8)=2*12=24", "24=4*6=24"] {
            assert!(check_solution(&problem, text).is_ok(), "{text}");
        }
        assert_eq!(reason(&problem, "4*6=24.0"), McdReason::UnexpectedCharacter);
        let negative = super::tests::problem(-5, &[2, 7], 1, (2, 2));
        assert!(check_solution(&negative, "2-7 = -5").is_ok());
    }

    #[test]
    fn what_is_kept_of_an_answer_is_bounded() {
        let graded = grade(&twenty_four(), &"1,".repeat(10_000));
        assert_eq!(graded.items.len(), 3 + MAX_SURPLUS_ITEMS);
        let graded = grade(&twenty_four(), &format!("1{}", "\u{e9}".repeat(10_000)));
        assert_eq!(graded.items[0].reason, Some(is(McdReason::TooLong)));
        assert_eq!(graded.items[0].text.len(), MAX_EXPRESSION_BYTES - 1);
    }

    #[test]
    fn json_is_the_line_format() {
        let graded = grade(&problem(6, &[2, 3], 2, (2, 2)), "2*3, 2+3");
        assert_eq!(
            serde_json::to_string(&graded).unwrap(),
            r#"{"reward":0.5,"correct":1,"required":2,"items":[{"text":"2*3","ok":true,"reason":null},{"text":"2+3","ok":false,"reason":"wrong_value"}]}"#
        );
    }

    fn check_bounds(problem: &Problem, answer: &str) -> Result<(), TestCaseError> {
        let graded = grade(problem, answer);
        prop_assert!((0.0..=1.0).contains(&graded.reward));
        prop_assert!(graded.items.len() <= problem.required + MAX_SURPLUS_ITEMS);
        let num_ok = graded.items.iter().filter(|item| item.ok).count();
        prop_assert_eq!(num_ok, graded.num_correct);
        for item in &graded.items {
            prop_assert_eq!(item.ok, item.reason.is_none());
            prop_assert!(item.text.len() <= MAX_EXPRESSION_BYTES);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_text_is_graded(answer in any::<String>()) {
            check_bounds(&twenty_four(), &answer)?;
        }

        #[test]
        fn any_near_answer_is_graded(answer in "[2-8+*/()=,; \n-]{0,80}") {
            check_bounds(&twenty_four(), &answer)?;
        }

        #[test]
        fn listing_more_changes_nothing(
            first in prop::collection::vec(prop::sample::select(vec!["4*6", "3*8", "2*3"]), 3),
            more in "[2-8+*/()=,; \n-]{0,40}",
        ) {
            let first = first.join("\n");
            let alone = grade(&twenty_four(), &first);
            let longer = grade(&twenty_four(), &format!("{first}\n{more}"));
            prop_assert_eq!(alone.num_correct, longer.num_correct);
        }
    }
}
