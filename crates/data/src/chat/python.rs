//! Methods of Python's texts where `minijinja-contrib` lacks them or cuts elsewhere than Python does.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Called for every method that the engine itself does not know.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = text_method(text, method, args)
    {
        return Ok(result);
    }
    unknown_method_callback(state, value, method, args)
}

/// `None` for what [`unknown_method_callback`] does as Python does.
fn text_method(text: &str, method: &str, args: &[Value]) -> Option<Value> {
    let argument = |index: usize| args.get(index).and_then(Value::as_str);
    Some(match (method, args) {
        ("strip", []) => text.trim_matches(is_space).into(),
        ("lstrip", []) => text.trim_start_matches(is_space).into(),
        ("rstrip", []) => text.trim_end_matches(is_space).into(),
        ("split" | "rsplit", []) => text
            .split(is_space)
            .filter(|word| !word.is_empty())
            .map(Value::from)
            .collect(),
        ("rsplit", [_]) => text
            .split(separator(argument(0))?)
            .map(Value::from)
            .collect(),
        ("rsplit", [_, limit]) => {
            let num_parts = usize::try_from(limit.as_i64()?).ok()?.checked_add(1)?;
            let mut parts: Vec<Value> = text
                .rsplitn(num_parts, separator(argument(0))?)
                .map(Value::from)
                .collect();
            parts.reverse();
            parts.into()
        }
        ("partition", [_]) => match text.split_once(separator(argument(0))?) {
            Some((head, tail)) => triple(head, argument(0)?, tail),
            None => triple(text, "", ""),
        },
        ("rpartition", [_]) => match text.rsplit_once(separator(argument(0))?) {
            Some((head, tail)) => triple(head, argument(0)?, tail),
            None => triple("", "", text),
        },
        ("removeprefix", [_]) => text.strip_prefix(argument(0)?).unwrap_or(text).into(),
        ("removesuffix", [_]) => text.strip_suffix(argument(0)?).unwrap_or(text).into(),
        ("splitlines", []) => lines(text, false).into(),
        ("splitlines", [keep]) => lines(text, keep.is_true()).into(),
        ("title", []) => title(text).into(),
        _ => return None,
    })
}

/// The filter `trim`, which calls `strip`.
pub(super) fn trim(value: &Value, chars: Option<&str>) -> String {
    let text = value.to_string();
    let trimmed = match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)),
        None => text.trim_matches(is_space),
    };
    trimmed.to_owned()
}

/// The test `sequence`: whatever has a length and can be indexed.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::String
            | ValueKind::Seq
            | ValueKind::Map
            // A slice of a list is an iterable to the engine.
            | ValueKind::Iterable
            | ValueKind::Undefined
    )
}

/// The test `iterable`: the engine takes nothing for an empty list, Python does not.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// What `str.isspace` takes for a space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Python has no empty separator.
fn separator(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn triple(head: &str, middle: &str, tail: &str) -> Value {
    Tuple::from([head, middle, tail].map(Value::from)).into()
}

/// `str.splitlines`, which ends a line at more than `\n`.
fn lines(text: &str, keeps_ends: bool) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let is_end = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
        let at = rest.find(is_end).unwrap_or(rest.len());
        let end_len = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        let kept = if keeps_ends { at + end_len } else { at };
        lines.push(Value::from(&rest[..kept]));
        rest = &rest[at + end_len..];
    }
    lines
}

/// `str.title`: a letter behind a letter is small, any other one is large.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            titled.extend(c.to_lowercase());
        } else {
            titled.extend(c.to_uppercase());
        }
        is_inside = c.is_lowercase() || c.is_uppercase();
    }
    titled
}
