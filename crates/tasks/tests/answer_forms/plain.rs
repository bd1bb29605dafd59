//! The plain language of answers: `+ - * /`, parentheses, integers, blanks and tabs, with an optional `= target`.
//!
//! Every answer in it means what it says: whatever else the grader reads, it may not take any of it away.

use asyncthink_tasks::mcd::{DifferenceKey, Expr, Operator, Problem, grade};

/// Parses a sum and gives the rest of the text.
fn sum(text: &[u8], depth: usize) -> Parsed<'_> {
    chain(text, b"+-", &|text| {
        chain(text, b"*/", &|text| operand(text, depth))
    })
}

type Parsed<'a> = Option<(Expr, &'a [u8])>;

fn chain<'a>(text: &'a [u8], signs: &[u8], part: &dyn Fn(&'a [u8]) -> Parsed<'a>) -> Parsed<'a> {
    let (mut expr, mut rest) = part(text)?;
    loop {
        rest = skip(rest);
        let Some((sign, after)) = rest.split_first().filter(|(sign, _)| signs.contains(sign))
        else {
            return Some((expr, rest));
        };
        let operator = match sign {
            b'+' => Operator::Add,
            b'-' => Operator::Subtract,
            b'*' => Operator::Multiply,
            _ => Operator::Divide,
        };
        let (right, after) = part(after)?;
        expr = Expr::binary(operator, expr, right);
        rest = after;
    }
}

fn operand(text: &[u8], depth: usize) -> Parsed<'_> {
    let text = skip(text);
    if let Some(inner) = text.strip_prefix(b"(") {
        if depth == 32 {
            return None;
        }
        let (expr, rest) = sum(inner, depth + 1)?;
        return Some((expr, skip(rest).strip_prefix(b")")?));
    }
    let len = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..len]).ok()?.parse().ok()?;
    Some((Expr::Number(number), &text[len..]))
}

fn skip(text: &[u8]) -> &[u8] {
    let len = text.iter().take_while(|byte| b" \t".contains(byte)).count();
    &text[len..]
}

fn is_right(problem: &Problem, item: &str) -> Option<DifferenceKey> {
    let (text, claim) = match item.split_once('=') {
        Some((text, claim)) => (text, Some(claim.trim_matches([' ', '\t']))),
        None => (item, None),
    };
    if item.len() > 512 {
        return None;
    }
    if let Some(claim) = claim {
        let digits = claim.strip_prefix('-').unwrap_or(claim);
        let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_integer || claim.parse() != Ok(problem.target) {
            return None;
        }
    }
    let (expr, rest) = sum(text.as_bytes(), 0)?;
    let numbers = expr.numbers();
    let mut pool = problem.available_numbers.clone();
    let is_offered = numbers.iter().all(|number| {
        let at = pool.iter().position(|one| one == number);
        at.map(|at| pool.swap_remove(at)).is_some()
    });
    let rules = problem.rules;
    let is_right = rest.is_empty()
        && is_offered
        && (rules.min_numbers..=rules.max_numbers).contains(&numbers.len())
        && expr.evaluate().map(asyncthink_tasks::mcd::Rational::parts)
            == Ok((i128::from(problem.target), 1));
    is_right.then(|| DifferenceKey::of(&expr))
}

/// Checks that each item which is right in the plain language is right, or repeats one that is, and in its place.
///
/// Text with a backslash is left out: `\\,` separates nothing in LaTeX.
pub(crate) fn check_all_kept(problem: &Problem, answer: &str) {
    if answer.contains('\\') {
        return;
    }
    let graded = grade(problem, answer);
    let mut keys = Vec::new();
    let items = answer.split(['\n', '\r', ',', ';']);
    let items = items
        .map(|item| item.trim_matches([' ', '\t']))
        .filter(|item| !item.is_empty());
    for item in items.take(problem.required) {
        if let Some(key) = is_right(problem, item) {
            let duplicate = |item: &asyncthink_tasks::Item| {
                item.reason
                    .as_ref()
                    .is_some_and(|reason| reason.as_str() == "duplicate")
            };
            let is_kept = graded
                .items
                .iter()
                .any(|graded| graded.text == item && (graded.ok || duplicate(graded)));
            assert!(is_kept, "`{item}` of {answer:?}: {graded:#?}");
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    assert!(graded.num_correct >= keys.len(), "{answer:?}: {graded:#?}");
}
