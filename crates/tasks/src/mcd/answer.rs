//! The items of an answer.

use super::expr::MAX_EXPRESSION_BYTES;
use super::reading::Reading;
use super::token::trim;

/// Splits an answer into items at line ends, `,` and `;`.
///
/// Items are trimmed; those without a digit are left out. What follows a backslash separates nothing: `\,` and `\;` are spaces
/// of LaTeX. Neither does a comma in the target, where the item reads as a solution that states it: none of the two items that
/// this comma would part could be right, so nothing is lost.
pub(super) struct Items<'a> {
    rest: &'a str,
    grouped_target: Option<String>,
}

impl<'a> Items<'a> {
    pub(super) fn of(answer: &'a str, target: i64) -> Self {
        Self {
            rest: answer,
            grouped_target: grouped(target),
        }
    }

    /// The end of the next piece and the beginning of what follows its separator; `None` where commas were to be joined and
    /// the piece is too long to be read.
    fn piece(&self, joins_thousands: bool) -> Option<Piece> {
        let mut has_joined = false;
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            if has_joined && at > MAX_EXPRESSION_BYTES {
                return None;
            }
            let separates = match c {
                ',' if joins_thousands && self.is_in_target(at) => {
                    has_joined = true;
                    false
                }
                // LaTeX's `1{,}000`.
                ',' => !(self.rest[..at].ends_with('{') && self.rest[at + 1..].starts_with('}')),
                ';' | '\n' | '\r' => true,
                '\\' => {
                    let next = chars.next();
                    matches!(next, Some((_, '\n' | '\r')))
                }
                _ => false,
            };
            if separates {
                // All separators are of one byte; the backslash of a line end stays with the item.
                let next = self.rest.len() - chars.as_str().len();
                return Some(Piece {
                    end: next - 1,
                    next,
                    has_joined,
                });
            }
        }
        Some(Piece {
            end: self.rest.len(),
            next: self.rest.len(),
            has_joined,
        })
    }

    /// Whether a comma is one of those in the target, as a whole number.
    fn is_in_target(&self, comma: usize) -> bool {
        let Some(target) = &self.grouped_target else {
            return false;
        };
        let starts = target.match_indices(',');
        starts
            .filter_map(|(at, _)| comma.checked_sub(at))
            .any(|start| {
                let after = self
                    .rest
                    .get(start..)
                    .and_then(|rest| rest.strip_prefix(target.as_str()));
                after.is_some_and(|after| {
                    let is_within = self.rest[..start]
                        .ends_with(|c: char| c.is_ascii_digit() || c == ',')
                        || is_digit_at(after, 0);
                    let goes_on = after.starts_with(',')
                        && (1..4).all(|at| is_digit_at(after, at))
                        && !is_digit_at(after, 4);
                    !is_within && !goes_on
                })
            })
    }
}

/// A piece of an answer between two separators.
struct Piece {
    end: usize,
    /// One past the separator.
    next: usize,
    /// Whether a comma of it was taken for a part of a number.
    has_joined: bool,
}

fn is_digit_at(text: &str, at: usize) -> bool {
    text.as_bytes().get(at).is_some_and(u8::is_ascii_digit)
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        while !self.rest.is_empty() {
            let is_read =
                |piece: &Piece| !piece.has_joined || Reading::of(&self.rest[..piece.end]).is_ok();
            let joined = self.piece(true).filter(is_read);
            let Piece { end, next, .. } = joined.or_else(|| self.piece(false))?;
            let piece = &self.rest[..end];
            self.rest = &self.rest[next..];
            if piece.contains(char::is_numeric) {
                return Some(trim(piece));
            }
        }
        None
    }
}

/// The magnitude of a number with a comma before each group of three digits; `None` below 1000.
fn grouped(number: i64) -> Option<String> {
    let digits = number.unsigned_abs().to_string();
    if digits.len() <= 3 {
        return None;
    }
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(answer: &str, target: i64) -> Vec<&str> {
        Items::of(answer, target).collect()
    }

    #[test]
    fn an_answer_falls_into_items() {
        assert_eq!(
            items("4*6,3*8;2*12\r\n\nso: 1 \u{2028}7\u{ff0c}8", 24),
            ["4*6", "3*8", "2*12", "so: 1 \u{2028}7\u{ff0c}8"]
        );
        assert_eq!(
            items("\\[ 4 \\, \\times \\; 6 \\\\\n3 \\times 8 \\\n\\]", 24),
            ["\\[ 4 \\, \\times \\; 6 \\\\", "3 \\times 8 \\"]
        );
        assert_eq!(items("Here:\n```\n4*6\n```\n\u{2022}, (a)", 24), ["4*6"]);
        assert!(items("", 24).is_empty());
        assert_eq!(items("\u{bd}\n\u{663}", 24).len(), 2);
    }

    #[test]
    fn thousands_of_the_target_are_kept_together() {
        for (target, text) in [
            (1000, "40*25 = 1,000"),
            (1000, "- [x] *$1,000$ = 40*25*"),
            (1000, "(3) **1,000** = 40*25"),
            (1000, "1,000 = 40*25"),
            (1000, "1. 1,000 = 40*25 = 1,000 \u{2713}."),
            (1000, "**40*25** = **1,000**"),
            (1000, r"$40 \times 25 = \boxed{1,000}$"),
            (-1000, "5-1005 = -1,000"),
            (1_234_567, "1234568-1 = 1,234,567 \u{2713}"),
            (7, "40*25 = 1{,}000"),
            (7, r"40*25 = 1\,000"),
        ] {
            assert_eq!(items(text, target), [text], "{text}");
            let twice = format!("{text}, {text}");
            assert_eq!(items(&twice, target), [text, text], "{twice}");
        }
    }

    #[test]
    fn any_other_comma_separates() {
        for (target, text, second) in [
            (24, "25-1,000", "000"),
            (1, "5-4=1,100", "100"),
            (1000, "5*200,000+1000", "000+1000"),
            (1000, "1001-1,000", "000"),
            (1000, "(1001)-1,000", "000"),
            (1000, "(1000)*1,000", "000"),
            (1000, "40*25=1,000*1", "000*1"),
            (1000, "40*25=1,0000", "0000"),
            (1000, "40*25=21,000", "000"),
            (1000, "40*25=1,000,000", "000"),
            (1000, "40*25=1,001", "001"),
        ] {
            assert_eq!(items(text, target)[1], second, "{text}");
        }
    }
}
