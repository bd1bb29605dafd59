//! The filter `tojson` as `transformers` defines it: `json.dumps` without the escaping for HTML.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Deepest nesting that is written; values of a template are built by it and may be deep.
const MAX_DEPTH: usize = 64;

/// How `json.dumps` lays out what it writes.
struct Layout {
    is_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    is_sorted: bool,
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the engine passes arguments by value"
)]
pub(super) fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= MAX_DEPTH => " ".repeat(width),
            _ => return Err(bad("`indent` must be a text or a small number")),
        }),
    };
    let separators = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            match pair.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
                [Some(item), Some(key)] => (item.to_owned(), key.to_owned()),
                _ => return Err(bad("`separators` must be two texts")),
            }
        }
        _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let is_set = |name: &str| -> Result<bool, Error> {
        Ok(options
            .get::<Option<Value>>(name)?
            .is_some_and(|value| value.is_true()))
    };
    let layout = Layout {
        is_ascii: is_set("ensure_ascii")?,
        indent,
        item_separator: separators.0,
        key_separator: separators.1,
        is_sorted: is_set("sort_keys")?,
    };
    options.assert_all_used()?;
    let mut text = String::new();
    layout.write(&value, 0, &mut text)?;
    Ok(Value::from(text))
}

fn bad(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"))
}

impl Layout {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(bad("the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                // Writing to a string cannot fail.
                let _ = write!(out, "{value}");
            }
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            // A slice of a list is an iterable to the engine.
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(('[', ']'), items.len(), depth, out, |index, out| {
                    self.write(&items[index], depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.is_sorted {
                    keys.sort();
                }
                self.list(('{', '}'), keys.len(), depth, out, |index, out| {
                    let key = &keys[index];
                    match key.as_str() {
                        Some(key) => self.text(key, out),
                        None if matches!(key.kind(), ValueKind::Number) => {
                            self.text(&key.to_string(), out);
                        }
                        None => return Err(bad("a key is neither text nor number")),
                    }
                    out.push_str(&self.key_separator);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            kind => return Err(bad(&format!("a value of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn list(
        &self,
        brackets: (char, char),
        num_items: usize,
        depth: usize,
        out: &mut String,
        mut item: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(brackets.0);
        for index in 0..num_items {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(depth + 1, out);
            item(index, out)?;
        }
        if num_items > 0 {
            self.new_line(depth, out);
        }
        out.push(brackets.1);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        // The escapes of JSON itself are the same in both languages.
        let quoted = serde_json::Value::from(text).to_string();
        if !self.is_ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() && c != '\u{7f}' {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}
