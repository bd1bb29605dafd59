//! The reading of an item: an expression, or a chain of equal ones that states the target.

use super::decoration::{strip_bullet, strip_label, strip_trailing, strip_wrapper};
use super::expr::{Expr, MAX_EXPRESSION_BYTES};
use super::operator::Operator;
use super::reason::McdReason;
use super::token::{digit_of, operator_of, trim};

/// Layers of decoration that are taken off an item, and off each side of its `=`; it bounds the work.
const MAX_LAYERS: usize = 8;

/// Separators of thousands.
const THOUSANDS_SEPARATORS: [&str; 6] = [",", "{,}", "\\,", "\u{a0}", "\u{2009}", "\u{202f}"];

/// An item that reads as a solution, before anything is asked about its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    /// The expression that the item offers.
    pub(super) solution: Expr,
    /// Integers that the item states its value to be.
    pub(super) claims: Vec<i128>,
    /// Further expressions that the item states to be equal.
    pub(super) equals: Vec<Expr>,
}

impl Reading {
    /// Reads an item: the first of its readings that has the form of an expression, from the text as it is to the text
    /// with all decorations taken off. The value plays no part in the choice, so an item cannot offer two.
    ///
    /// # Errors
    /// [`McdReason::TooLong`], or why the barest reading is none.
    pub(super) fn of(text: &str) -> Result<Self, McdReason> {
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(McdReason::TooLong);
        }
        let mut text = trim(text);
        // A list marker comes before a number or label: after one it would be an operator.
        let mut is_at_front = true;
        for _ in 0..MAX_LAYERS {
            let reason = match Self::of_chain(text) {
                Ok(reading) => return Ok(reading),
                Err(reason) => reason,
            };
            let bullet = if is_at_front {
                strip_bullet(text)
            } else {
                None
            };
            let rest = strip_trailing(text).or(bullet).or_else(|| {
                is_at_front = false;
                strip_label(text).or_else(|| strip_wrapper(text))
            });
            text = rest.ok_or(reason)?;
        }
        Self::of_chain(text)
    }

    /// Reads `expression`, or expressions and the target around `=`.
    fn of_chain(text: &str) -> Result<Self, McdReason> {
        let parts = text.split(['=', '\u{ff1d}']).map(Part::of);
        let mut parts = parts.collect::<Result<Vec<_>, _>>()?;
        let states_value = |part: Option<&Part>| !matches!(part, Some(Part::Expr(_)));
        if parts.len() > 1 && !states_value(parts.first()) && !states_value(parts.last()) {
            return Err(McdReason::Syntax);
        }
        let first = |is_chosen: fn(&Part) -> bool| parts.iter().position(is_chosen);
        let chosen = first(|part| matches!(part, Part::Expr(_)))
            .or_else(|| first(|part| matches!(part, Part::Number(_))))
            .ok_or(McdReason::Syntax)?;
        let solution = match parts.remove(chosen) {
            Part::Expr(expr) => expr,
            Part::Number(number) => i64::try_from(number)
                .map(Expr::Number)
                .map_err(|_| McdReason::NumberNotAvailable)?,
            Part::Claim(_) => return Err(McdReason::Syntax),
        };
        let (mut claims, mut equals) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                Part::Expr(expr) => equals.push(expr),
                Part::Number(number) | Part::Claim(number) => claims.push(number),
            }
        }
        Ok(Self {
            solution,
            claims,
            equals,
        })
    }
}

/// A side of `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// A number by itself.
    Number(i128),
    /// An integer that no expression holds: with a sign, or with its thousands set apart.
    Claim(i128),
    /// An expression with an operator.
    Expr(Expr),
}

impl Part {
    fn of(text: &str) -> Result<Self, McdReason> {
        let mut text = trim(text);
        for _ in 0..MAX_LAYERS {
            let reason = match Self::of_bare(text) {
                Ok(part) => return Ok(part),
                Err(reason) => reason,
            };
            text = strip_wrapper(text).ok_or(reason)?;
        }
        Self::of_bare(text)
    }

    fn of_bare(text: &str) -> Result<Self, McdReason> {
        if let Some(number) = digits(text) {
            return Ok(Self::Number(number));
        }
        match Expr::parse(text) {
            Ok(Expr::Number(number)) => Ok(Self::Number(number.into())),
            Ok(expr) => Ok(Self::Expr(expr)),
            Err(reason) => claim(text).map(Self::Claim).ok_or(reason),
        }
    }
}

/// A text of digits as its number, which saturates far beyond any target.
fn digits(text: &str) -> Option<i128> {
    let mut value = 0_i128;
    for c in text.chars() {
        value = value.saturating_mul(10).saturating_add(digit_of(c)?.into());
    }
    (!text.is_empty()).then_some(value)
}

/// An integer with a sign, because a target may be negative, or with its thousands set apart.
fn claim(text: &str) -> Option<i128> {
    let is_minus = |c: char| operator_of(c) == Some(Operator::Subtract);
    let unsigned = text.strip_prefix(is_minus).unwrap_or(text);
    let number = digits(unsigned).or_else(|| {
        THOUSANDS_SEPARATORS.into_iter().find_map(|separator| {
            let mut groups = unsigned.split(separator);
            let first = groups.next()?;
            let is_group =
                |group: &str| group.len() == 3 && group.bytes().all(|byte| byte.is_ascii_digit());
            let is_first = (1..=3).contains(&first.len())
                && first.bytes().all(|byte| byte.is_ascii_digit())
                && !first.starts_with('0');
            let is_grouped = is_first && unsigned.len() > first.len() && groups.all(is_group);
            is_grouped.then(|| digits(&unsigned.replace(separator, "")))?
        })
    })?;
    let is_negative = unsigned.len() < text.len();
    Some(if is_negative { -number } else { number })
}
