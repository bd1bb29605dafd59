//! The grader.

use std::collections::{BTreeMap, BTreeSet};

use super::expr::{Expr, MAX_EXPRESSION_BYTES};
use super::key::DifferenceKey;
use super::problem::Problem;
use super::rational::{ArithmeticError, Rational};
use crate::grade::{Grade, Item, Reason};

/// Items that are listed as surplus before the rest of an answer is left unread.
const MAX_SURPLUS_ITEMS: usize = 64;

/// Items that are scored however large `required` is, so that a hand-made problem cannot unbound the work.
const MAX_SCORED_ITEMS: usize = 1024;

/// Grades an answer: one expression per line, or separated by `,` or `;`, each with an optional `= target`.
///
/// Only the first `required` items are scored, right or wrong; each later one is listed with
/// [`Reason::Surplus`] and never read, so listing guesses cannot raise the expected reward. Blank items are
/// skipped. At most 64 surplus items are listed; the text of an item is cut to 512 bytes.
///
/// The time is linear in the answer with a small constant: bytes past the listed items are not looked at.
pub fn grade(problem: &Problem, answer: &str) -> Grade {
    let num_scored = problem.required.min(MAX_SCORED_ITEMS);
    let pool = Pool::new(&problem.available_numbers);
    let mut seen = BTreeSet::new();
    let mut items = Vec::new();
    let mut num_correct = 0;
    for text in split_items(answer).take(num_scored + MAX_SURPLUS_ITEMS) {
        let reason = if items.len() >= num_scored {
            Some(Reason::Surplus)
        } else {
            match check_with_pool(problem, &pool, text) {
                Err(reason) => Some(reason),
                Ok(expr) if seen.insert(DifferenceKey::of(&expr)) => {
                    num_correct += 1;
                    None
                }
                Ok(_) => Some(Reason::Duplicate),
            }
        };
        items.push(Item {
            text: cut(text).to_owned(),
            ok: reason.is_none(),
            reason,
        });
    }
    Grade::new(num_correct, problem.required, items)
}

/// Checks one item of an answer by itself and gives its expression, whose [`DifferenceKey`] identifies it.
///
/// # Errors
/// The [`Reason`] why it is no solution; never [`Reason::Duplicate`] or [`Reason::Surplus`], which need a list.
pub fn check_solution(problem: &Problem, text: &str) -> Result<Expr, Reason> {
    check_with_pool(problem, &Pool::new(&problem.available_numbers), text)
}

fn check_with_pool(problem: &Problem, pool: &Pool, text: &str) -> Result<Expr, Reason> {
    if text.len() > MAX_EXPRESSION_BYTES {
        return Err(Reason::TooLong);
    }
    let (left, right) = match text.split_once('=') {
        Some((left, right)) => (left, Some(right)),
        None => (text, None),
    };
    let expr = Expr::parse(left)?;
    let claimed = right.map(parse_integer).transpose()?;
    let numbers = expr.numbers();
    pool.check(&numbers)?;
    if numbers.len() < problem.rules.min_numbers {
        return Err(Reason::TooFewNumbers);
    }
    if numbers.len() > problem.rules.max_numbers {
        return Err(Reason::TooManyNumbers);
    }
    if claimed.is_some_and(|claimed| claimed != Some(problem.target)) {
        return Err(Reason::WrongTarget);
    }
    match expr.evaluate() {
        Ok(value) if value == Rational::from(problem.target) => Ok(expr),
        Ok(_) => Err(Reason::WrongValue),
        Err(ArithmeticError::DivisionByZero) => Err(Reason::DivisionByZero),
        Err(ArithmeticError::Overflow) => Err(Reason::Overflow),
    }
}

/// The text after `=`: an integer, which may have a sign because a target may be negative. `None` is an integer
/// beyond 64 bits.
fn parse_integer(text: &str) -> Result<Option<i64>, Reason> {
    let text = text.trim_matches([' ', '\t']);
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(text.parse().ok());
    }
    let is_allowed = |byte: u8| byte.is_ascii_digit() || b" \t()+-*/=".contains(&byte);
    if text.bytes().all(is_allowed) {
        Err(Reason::Syntax)
    } else {
        Err(Reason::UnexpectedCharacter)
    }
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

    fn check(&self, numbers: &[i64]) -> Result<(), Reason> {
        let used = Self::new(numbers);
        for (number, count) in used.counts {
            if self.counts.get(&number).is_none_or(|&have| have < count) {
                return Err(Reason::NumberNotAvailable);
            }
        }
        Ok(())
    }
}

/// The items of an answer without surrounding blanks, blank ones left out.
fn split_items(answer: &str) -> impl Iterator<Item = &str> {
    answer
        .split(['\n', '\r', ',', ';'])
        .map(|item| item.trim_matches([' ', '\t']))
        .filter(|item| !item.is_empty())
}

/// The longest prefix of at most [`MAX_EXPRESSION_BYTES`] bytes.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_EXPRESSION_BYTES)]
}
