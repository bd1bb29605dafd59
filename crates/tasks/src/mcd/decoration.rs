//! Decorations that models put around an expression, and how they come off: list markers, labels, Markdown, LaTeX, marks.
//!
//! Each function takes one layer off a trimmed text and gives the shorter rest; `None` where there is none. Nothing between
//! two operands is ever taken off, so no decoration can hide an operator or a digit of the expression itself.

use super::operator::Operator;
use super::token::{digit_of, is_blank, operator_of, trim};

/// Signs of list items that no operator is written with.
const BULLETS: &[char] = &[
    '\u{2022}', '\u{2023}', '\u{25e6}', '\u{25aa}', '\u{25ab}', '\u{25cf}', '\u{25cb}', '\u{25a0}',
    '\u{25a1}', '\u{25c6}', '\u{27a4}', '\u{25ba}', '\u{25b6}', '\u{2192}', '\u{21d2}', '\u{2014}',
    '\u{2713}', '\u{2714}', '\u{2705}', '\u{2611}',
];

/// Signs of list items that are operators too; a blank must follow.
const OPERATOR_BULLETS: &[char] = &['-', '*', '+', '\u{2013}', '\u{b7}', '\u{2219}'];

/// Marks of what was checked and found right.
const CHECK_MARKS: &[char] = &['\u{2713}', '\u{2714}', '\u{2705}', '\u{2611}', '\u{1f5f8}'];

/// Pairs of Markdown's emphasis, longest first.
const EMPHASIS: [&str; 6] = ["***", "___", "**", "__", "*", "_"];

/// Quotes and their closing signs.
const QUOTES: [(char, char); 5] = [
    ('"', '"'),
    ('\'', '\''),
    ('\u{201c}', '\u{201d}'),
    ('\u{2018}', '\u{2019}'),
    ('\u{300c}', '\u{300d}'),
];

/// Takes a list marker, a Markdown heading or a quote marker off the front.
pub(super) fn strip_bullet(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix('>') {
        return Some(trim(rest));
    }
    if text.starts_with('#') {
        let rest = text.trim_start_matches('#');
        return (text.len() - rest.len() <= 6 && rest.starts_with(is_blank)).then(|| trim(rest));
    }
    let first = text.chars().next()?;
    let rest = &text[first.len_utf8()..];
    let is_bullet =
        BULLETS.contains(&first) || OPERATOR_BULLETS.contains(&first) && rest.starts_with(is_blank);
    if !is_bullet {
        return None;
    }
    let rest = trim(rest);
    // A task list's box.
    for checkbox in ["[ ]", "[x]", "[X]"] {
        if let Some(after) = rest.strip_prefix(checkbox)
            && after.starts_with(is_blank)
        {
            return Some(trim(after));
        }
    }
    Some(rest)
}

/// Takes a number or words that end in `.`, `)` or `:` off the front: `1.`, `(2)`, `Solution 3:`, `**b)**`.
pub(super) fn strip_label(text: &str) -> Option<&str> {
    let marker = EMPHASIS
        .into_iter()
        .find(|marker| text.starts_with(marker))
        .unwrap_or_default();
    let (kind, rest) = label_name(&text[marker.len()..])?;
    // The emphasis ends before or after the punctuation.
    let (rest, is_closed) = match rest.strip_prefix(marker) {
        Some(rest) if !marker.is_empty() => (rest, true),
        _ => (rest, marker.is_empty()),
    };
    let punctuation = rest.chars().next()?;
    let (rest, is_colon) = match punctuation {
        ':' | '\u{ff1a}' => (&rest[punctuation.len_utf8()..], true),
        '.' | ')' | '\u{3001}' if kind != LabelKind::Words => {
            (&rest[punctuation.len_utf8()..], false)
        }
        _ if matches!(kind, LabelKind::Enclosed | LabelKind::Sign) => (rest, false),
        _ => return None,
    };
    let rest = if is_closed {
        rest
    } else {
        rest.strip_prefix(marker)?
    };
    let is_apart = is_colon && matches!(kind, LabelKind::Words | LabelKind::NumberedWords)
        || kind == LabelKind::Sign
        || rest.starts_with(|c: char| is_blank(c) || matches!(c, '$' | '`'))
        || rest.starts_with("\\(")
        || rest.starts_with("\\[");
    let rest = trim(rest);
    (is_apart && !rest.is_empty()).then_some(rest)
}

/// The form of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LabelKind {
    /// `1`, `a` or `iv`, which needs punctuation.
    Enumerator,
    /// `(1)` or `[1]`, which needs none.
    Enclosed,
    /// A circled number or a keycap, which needs none.
    Sign,
    /// Words.
    Words,
    /// Words and a number at their end.
    NumberedWords,
}

/// The name at the front of a label, and what follows it.
fn label_name(text: &str) -> Option<(LabelKind, &str)> {
    let first = text.chars().next()?;
    if matches!(first, '\u{2460}'..='\u{2473}' | '\u{2776}'..='\u{277f}') {
        return Some((LabelKind::Sign, &text[first.len_utf8()..]));
    }
    for (open, close) in [('(', ')'), ('[', ']')] {
        if let Some(inner) = text.strip_prefix(open) {
            let (name, rest) = enumerator(inner)?;
            let rest = rest.strip_prefix(close)?;
            return (!name.is_empty()).then_some((LabelKind::Enclosed, rest));
        }
    }
    if let Some((name, rest)) = enumerator(text) {
        // A keycap, as in 1 + U+FE0F + U+20E3.
        let keycap = rest.strip_prefix('\u{fe0f}').unwrap_or(rest);
        if let Some(rest) = keycap.strip_prefix('\u{20e3}') {
            return (name.len() == 1).then_some((LabelKind::Sign, rest));
        }
        if rest.starts_with(['.', ')', ':', '\u{3001}', '\u{ff1a}', '*', '_']) {
            return Some((LabelKind::Enumerator, rest));
        }
    }
    words(text)
}

/// Digits, one letter or a small Roman numeral that no letter or digit follows.
fn enumerator(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('#').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric())
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let is_number = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let is_letter = name.len() == 1;
    let is_roman = (1..=4).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'i' | b'v' | b'x'));
    (is_number || is_letter || is_roman).then_some((name, rest))
}

/// Words with at most one number, at their end.
fn words(text: &str) -> Option<(LabelKind, &str)> {
    if !text.starts_with(char::is_alphabetic) {
        return None;
    }
    let end = text
        .find(|c: char| {
            !(c.is_alphabetic() || is_blank(c) || matches!(c, '\'' | '\u{2019}' | '-' | '#'))
        })
        .unwrap_or(text.len());
    let rest = &text[end..];
    let number_end = rest
        .find(|c: char| digit_of(c).is_none())
        .unwrap_or(rest.len());
    if number_end == 0 {
        return Some((LabelKind::Words, rest));
    }
    Some((LabelKind::NumberedWords, &rest[number_end..]))
}

/// Takes a mark, a full stop or a remark in parentheses off the end.
pub(super) fn strip_trailing(text: &str) -> Option<&str> {
    let last = text.chars().next_back()?;
    let before = &text[..text.len() - last.len_utf8()];
    let rest = match last {
        mark if CHECK_MARKS.contains(&mark) => before,
        '.' | '\u{3002}' if !before.ends_with(last) => before,
        '!' | '\u{ff01}' if states_integer_last(before) => before,
        // A line break of Markdown or LaTeX.
        '\\' => before.strip_suffix('\\').unwrap_or(before),
        ')' => {
            let (before, remark) = before.rsplit_once('(')?;
            let is_remark = |c: char| {
                c.is_alphabetic()
                    || is_blank(c)
                    || CHECK_MARKS.contains(&c)
                    || matches!(c, '!' | '.' | '\'' | '\u{2019}')
            };
            let has_word = |c: char| c.is_alphabetic() || CHECK_MARKS.contains(&c);
            if !before.ends_with(is_blank)
                || !remark.chars().all(is_remark)
                || !remark.contains(has_word)
            {
                return None;
            }
            before
        }
        _ => return None,
    };
    let rest = trim(rest);
    (!rest.is_empty()).then_some(rest)
}

/// Whether a side of `=` without an operator ends the text: after an operand `!` would be a factorial.
fn states_integer_last(text: &str) -> bool {
    text.rsplit_once(['=', '\u{ff1d}'])
        .is_some_and(|(_, side)| {
            let side = side.trim_matches(|c: char| is_blank(c) || matches!(c, '*' | '_'));
            let side = side
                .strip_prefix(|c| operator_of(c) == Some(Operator::Subtract))
                .unwrap_or(side);
            side.chars().all(|c| operator_of(c).is_none()) && side.ends_with(|c: char| c != '!')
        })
}

/// Takes delimiters off both ends, or math delimiters off either: `**...**`, `` `...` ``, `$...$`, `\(...\)`, `\boxed{...}`.
pub(super) fn strip_wrapper(text: &str) -> Option<&str> {
    let rest = strip_delimiters(text);
    if rest.len() < text.len() {
        return (!rest.is_empty()).then_some(rest);
    }
    boxed(text).or_else(|| paired(text))
}

/// Math and code delimiters, which a separator may have parted from their other half.
fn strip_delimiters(text: &str) -> &str {
    let mut rest = text.trim_matches(|c: char| matches!(c, '$' | '`' | '&') || is_blank(c));
    for opening in ["\\(", "\\["] {
        rest = rest.strip_prefix(opening).unwrap_or(rest);
    }
    for closing in ["\\)", "\\]"] {
        rest = rest.strip_suffix(closing).unwrap_or(rest);
    }
    if let Some((_, after)) = rest
        .strip_prefix("\\begin{")
        .and_then(|rest| rest.split_once('}'))
    {
        rest = after;
    }
    if let Some((before, name)) = rest.rsplit_once("\\end{")
        && name.find('}').is_some_and(|at| at + 1 == name.len())
    {
        rest = before;
    }
    trim(rest)
}

/// The inside of `\boxed{...}` where it is the whole text.
fn boxed(text: &str) -> Option<&str> {
    let inner = text
        .strip_prefix("\\boxed")
        .or_else(|| text.strip_prefix("\\fbox"))?;
    let inner = trim(inner).strip_prefix('{')?.strip_suffix('}')?;
    let mut depth = 0_i32;
    for byte in inner.bytes() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return None;
        }
    }
    (depth == 0 && !trim(inner).is_empty()).then(|| trim(inner))
}

/// The inside of emphasis or quotes around the whole text.
fn paired(text: &str) -> Option<&str> {
    for marker in EMPHASIS {
        if let Some(inner) = text.strip_prefix(marker)
            && let Some(inner) = inner.strip_suffix(marker)
        {
            let sign = |c: char| is_blank(c) || marker.starts_with(c);
            let is_emphasis =
                !inner.is_empty() && !inner.starts_with(sign) && !inner.ends_with(sign);
            return is_emphasis.then_some(inner);
        }
    }
    QUOTES.into_iter().find_map(|(open, close)| {
        let inner = text.strip_prefix(open)?.strip_suffix(close)?;
        (!trim(inner).is_empty()).then(|| trim(inner))
    })
}

/// Whether a text announces expressions and is none: words and numbers that end in a colon, are a Markdown heading or
/// emphasised, or are one word and a number.
pub(super) fn is_heading(text: &str) -> bool {
    let core = text.trim_matches(|c: char| is_blank(c) || matches!(c, '*' | '_' | '#' | '>'));
    let body = core.trim_end_matches([':', '\u{ff1a}']);
    let is_plain = |c: char| {
        c.is_alphabetic()
            || digit_of(c).is_some()
            || is_blank(c)
            || matches!(
                c,
                '\'' | '\u{2019}' | '"' | '#' | '.' | '?' | '!' | '(' | ')'
            )
    };
    // A hyphen joins letters; elsewhere it may be a minus.
    let is_hyphen = |at: usize| {
        body[..at].ends_with(char::is_alphabetic) && body[at + 1..].starts_with(char::is_alphabetic)
    };
    let is_text = body
        .char_indices()
        .all(|(at, c)| is_plain(c) || c == '-' && is_hyphen(at));
    let mut words = body.split(|c: char| !c.is_alphabetic());
    // A single letter may be meant as a variable, or as a sign.
    if !is_text || !words.any(|word| word.len() > 1) {
        return false;
    }
    let is_announced = body.len() < core.len()
        || text.starts_with('#')
        || EMPHASIS.iter().any(|marker| {
            text.len() > 2 * marker.len() && text.starts_with(marker) && text.ends_with(marker)
        });
    let mut words = body.split(is_blank).filter(|word| !word.is_empty());
    let is_word_and_number = words
        .next()
        .is_some_and(|word| word.chars().all(char::is_alphabetic))
        && words.next().is_some_and(|word| {
            let word = word.strip_prefix('#').unwrap_or(word);
            !word.is_empty() && word.chars().all(|c| digit_of(c).is_some())
        })
        && words.next().is_none();
    is_announced || is_word_and_number
}
