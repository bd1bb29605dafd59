//! A TOML document as a plain tree in which every key and value remembers
//! where it came from, with `--set` arguments laid over it.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{ErrorKind, RecipeError};
use crate::source::Source;

/// One value.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) source: Source,
    pub(crate) value: Value,
}

/// One key of a table with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_source: Source,
    pub(crate) node: Node,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Table(Vec<Entry>),
    Array(Vec<Node>),
    String(String),
    Integer(i64),
    /// An integer that no 64 bits hold, as written.
    HugeInteger(String),
    Float(f64),
    Boolean(bool),
    Datetime(String),
}

impl Value {
    /// The name of the type, as a reader of TOML knows it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::Array(_) => "an array",
            Self::String(_) => "a string",
            Self::Integer(_) | Self::HugeInteger(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
        }
    }

    /// The value on one line, shortened where it is long.
    pub(crate) fn display(&self) -> String {
        let text = match self {
            Self::Table(entries) => {
                let inner: Vec<_> = entries
                    .iter()
                    .map(|entry| format!("{} = {}", entry.key, entry.node.value.display()))
                    .collect();
                format!("{{ {} }}", inner.join(", "))
            }
            Self::Array(items) => {
                let inner: Vec<_> = items.iter().map(|item| item.value.display()).collect();
                format!("[{}]", inner.join(", "))
            }
            Self::String(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::HugeInteger(text) | Self::Datetime(text) => text.clone(),
            Self::Float(number) => format!("{number:?}"),
            Self::Boolean(truth) => truth.to_string(),
        };
        if text.chars().count() > MAX_VALUE_CHARS {
            let head: String = text.chars().take(MAX_VALUE_CHARS).collect();
            format!("{head}...")
        } else {
            text
        }
    }

    /// The same value without its sources, for serde.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Table(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.node.value.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Self::Array(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Self::String(text) | Self::Datetime(text) | Self::HugeInteger(text) => {
                text.clone().into()
            }
            Self::Integer(number) => (*number).into(),
            Self::Float(number) => (*number).into(),
            Self::Boolean(truth) => (*truth).into(),
        }
    }
}

/// Longer values are cut in messages.
const MAX_VALUE_CHARS: usize = 60;

/// Deepest nesting of a `--set` key: no recipe key is near it.
const MAX_KEY_PARTS: usize = 16;

impl Node {
    /// The entry of a table by key.
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The source of the value at a dotted key, or of the nearest table that
    /// would hold it, and whether the key itself is there.
    pub(crate) fn locate(&self, dotted: &str) -> (Source, Option<&Value>) {
        let mut node = self;
        for part in dotted.split('.') {
            match node.get(part) {
                Some(entry) => node = &entry.node,
                None => return (node.source.clone(), None),
            }
        }
        (node.source.clone(), Some(&node.value))
    }
}

/// Reads a document; all syntax errors at once.
pub(crate) fn parse(text: &str) -> Result<Node, Vec<RecipeError>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let mut found: Vec<RecipeError> = Vec::new();
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            found.push(RecipeError::new(
                ErrorKind::Syntax,
                Source::Text(span),
                "",
                None,
                one_line(error.message()),
                syntax_hint(error.message()),
            ));
        }
        return Err(found);
    }
    Ok(Node {
        source: Source::Root,
        value: table_value(table.get_ref(), &Source::Text),
    })
}

fn one_line(message: &str) -> String {
    message.split('\n').collect::<Vec<_>>().join("; ")
}

fn syntax_hint(message: &str) -> String {
    if message.contains("duplicate") {
        "keep one of the two".to_owned()
    } else {
        "a recipe is TOML: `key = value`, strings in double quotes, sections as `[name]`".to_owned()
    }
}

fn table_value(table: &DeTable<'_>, source: &dyn Fn(Range<usize>) -> Source) -> Value {
    let entries = table.iter().map(|(key, value)| Entry {
        key: key.get_ref().to_string(),
        key_source: source(key.span()),
        node: node(value, source),
    });
    Value::Table(entries.collect())
}

fn node(spanned: &Spanned<DeValue<'_>>, source: &dyn Fn(Range<usize>) -> Source) -> Node {
    let value = match spanned.get_ref() {
        DeValue::Table(table) => table_value(table, source),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| node(item, source)).collect())
        }
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::HugeInteger(number.to_string()), Value::Integer),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
    };
    Node {
        source: source(spanned.span()),
        value,
    }
}

/// Lays one `--set a.b=value` over the document. The value is TOML; text that
/// is not TOML is taken as a string, so that `device=cpu` needs no quotes.
pub(crate) fn apply_set(
    root: &mut Node,
    index: usize,
    argument: &str,
) -> Result<(), Box<RecipeError>> {
    let source = Source::Set(index);
    let fail = |reason: String, hint: &str| {
        Err(Box::new(RecipeError::new(
            ErrorKind::Override,
            source.clone(),
            "",
            None,
            reason,
            hint.to_owned(),
        )))
    };
    let example = "write it as `--set grpo.group_size=8`";
    let Some((path, text)) = argument.split_once('=') else {
        return fail("no `=` between key and value".to_owned(), example);
    };
    let path = path.trim();
    let parts: Vec<&str> = path.split('.').map(str::trim).collect();
    let is_key = |part: &&str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    if parts.len() > MAX_KEY_PARTS || !parts.iter().all(is_key) {
        return fail(format!("`{path}` is not a dotted key"), example);
    }
    let value = parse_set_value(text.trim(), &source);
    insert(root, &parts, value, &source).or_else(|blocker| {
        fail(
            format!("`{blocker}` holds a plain value and no keys"),
            "name a key of a section, or the section's table itself",
        )
    })
}

fn parse_set_value(text: &str, source: &Source) -> Node {
    match DeValue::parse(text) {
        Ok(value) => node(&value, &|_| source.clone()),
        Err(_) => Node {
            source: source.clone(),
            value: Value::String(text.to_owned()),
        },
    }
}

/// Puts `value` at `parts`, making the tables on the way. The error is the
/// dotted key of a plain value that stands in the way.
fn insert(root: &mut Node, parts: &[&str], value: Node, source: &Source) -> Result<(), String> {
    let mut current = root;
    for (depth, part) in parts.iter().enumerate() {
        let Value::Table(entries) = &mut current.value else {
            return Err(parts[..depth].join("."));
        };
        let position = entries.iter().position(|entry| entry.key == *part);
        let position = position.unwrap_or_else(|| {
            entries.push(Entry {
                key: (*part).to_owned(),
                key_source: source.clone(),
                node: Node {
                    source: source.clone(),
                    value: Value::Table(Vec::new()),
                },
            });
            entries.len() - 1
        });
        let entry = &mut entries[position];
        if depth + 1 == parts.len() {
            entry.key_source = source.clone();
            entry.node = value;
            return Ok(());
        }
        current = &mut entry.node;
    }
    Ok(())
}
