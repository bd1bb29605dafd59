//! Attempts in what an agent wrote: expressions with a stated value.

use super::expr::{Expr, MAX_EXPRESSION_BYTES};
use super::key::DifferenceKey;
use super::token::{digit_of, is_blank, operator_of};

/// Identities of the attempts in a text, in the order written: every `expression =` whose expression has an operator.
///
/// Two attempts that differ only in the order of operands are the same attempt. A list of solutions without values is not an
/// attempt, and neither is the second part of a chain `a = b = c`. Time is linear in the text.
pub(super) fn attempts(text: &str) -> Vec<DifferenceKey> {
    let mut found = Vec::new();
    for line in text.split(['\n', '\r', ';', ',']) {
        if let Some((left, _)) = line.split_once('=') {
            found.extend(expression_at_end(left).map(|expr| DifferenceKey::of(&expr)));
        }
    }
    found
}

/// The longest expression with an operator that ends the text, which may begin with words or a list marker.
fn expression_at_end(text: &str) -> Option<Expr> {
    let mut start = text.len();
    let is_part = |c: char| {
        digit_of(c).is_some() || operator_of(c).is_some() || is_blank(c) || "()[]".contains(c)
    };
    for (index, c) in text.char_indices().rev() {
        if !is_part(c) || text.len() - index > MAX_EXPRESSION_BYTES {
            break;
        }
        start = index;
    }
    let run = text[start..].trim();
    let unmarked = run.trim_start_matches(|c: char| "-*+ ".contains(c));
    let unnumbered = run.trim_start_matches(|c: char| c.is_ascii_digit());
    [run, unmarked, unnumbered.trim_start_matches(") ")]
        .into_iter()
        .find_map(|text| Expr::parse(text).ok())
        .filter(|expr| matches!(expr, Expr::Binary { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<Vec<i64>> {
        let keys = attempts(text);
        keys.iter().map(|key| key.numbers().to_vec()).collect()
    }

    #[test]
    fn an_expression_with_its_value_is_an_attempt() {
        assert_eq!(texts("3+20=023 ok 8+15;3+20\nhave 8+15\n"), [[3, 20]]);
        assert_eq!(texts("I try 7 * 4 = 28, no; - 2*(3+4) = 14").len(), 2);
        assert_eq!(texts("so 3*5 = 10+5 = 15"), [[3, 5]]);
        for text in [
            "1. 3*5 = 15",
            "2) 3*5 = 15",
            "* 3*5=15",
            "so 5 \u{d7} 3 = 15",
        ] {
            assert_eq!(texts(text), [[3, 5]], "{text}");
        }
    }

    #[test]
    fn prose_lists_and_single_numbers_are_not() {
        for text in [
            "",
            "=",
            "8+15;3+20",
            "x = 3",
            "15 = 3*5",
            "3+ = 4",
            "(((= 1",
        ] {
            assert!(attempts(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn the_order_of_operands_makes_no_other_attempt() {
        let keys = attempts("3+20=23\n20+3=23\n3*20=60");
        assert_eq!(keys[0], keys[1]);
        assert_ne!(keys[0], keys[2]);
    }
}
