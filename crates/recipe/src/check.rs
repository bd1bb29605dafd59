//! Walks a document against the schema and finds every unknown key, wrong
//! type, missing key and value outside its limits, not only the first.

use serde_json::{Map, Value as Json};

use crate::document::{Entry, Node, Value};
use crate::error::{ErrorKind, RecipeError};
use crate::nearest::nearest;
use crate::source::Source;

/// All errors of form in `root`.
pub(crate) fn check(root: &Node, schema: &Json) -> Vec<RecipeError> {
    let mut checker = Checker {
        schema,
        errors: Vec::new(),
    };
    checker.value(root, schema, "");
    checker.errors
}

struct Checker<'a> {
    schema: &'a Json,
    errors: Vec<RecipeError>,
}

impl Checker<'_> {
    fn push(&mut self, kind: ErrorKind, node: &Node, key: &str, reason: String, hint: String) {
        let value = Some(node.value.display());
        self.errors.push(RecipeError::new(
            kind,
            node.source.clone(),
            key,
            value,
            reason,
            hint,
        ));
    }

    fn value(&mut self, node: &Node, schema: &Json, key: &str) {
        if let Some(choices) = choices(schema) {
            self.choice(node, &choices, schema, key);
            return;
        }
        match (schema["type"].as_str(), &node.value) {
            (Some("object"), Value::Table(entries)) => {
                self.table(entries, &node.source, schema, key);
            }
            (Some("array"), Value::Array(items)) => self.array(node, items, schema, key),
            (Some("string"), Value::String(text)) => self.string(node, text, schema, key),
            (Some("boolean"), Value::Boolean(_)) => {}
            (Some("integer" | "number"), Value::Integer(number)) => {
                self.range(node, *number as f64, schema, key);
            }
            (Some(_), Value::String(text)) if schema["x-or"] == text.as_str() => {}
            (Some("integer" | "number"), Value::HugeInteger(_)) => self.push(
                ErrorKind::OutOfRange,
                node,
                key,
                "an integer of more than 64 bits".to_owned(),
                limits_hint(key, schema),
            ),
            (Some("number"), Value::Float(number)) => {
                if number.is_finite() {
                    self.range(node, *number, schema, key);
                } else {
                    self.push(
                        ErrorKind::OutOfRange,
                        node,
                        key,
                        "must be a finite number".to_owned(),
                        limits_hint(key, schema),
                    );
                }
            }
            (expected, _) => {
                let also = schema["x-or"].as_str();
                let expected = match expected {
                    Some("object") => "a table",
                    Some("array") => "an array",
                    Some("string") => "a string",
                    Some("boolean") => "a boolean",
                    Some("integer") => "an integer",
                    _ => "a number",
                };
                self.push(
                    ErrorKind::WrongType,
                    node,
                    key,
                    match also {
                        Some(word) => format!(
                            "expected {expected} or `{word}`, got {}",
                            node.value.type_name()
                        ),
                        None => format!("expected {expected}, got {}", node.value.type_name()),
                    },
                    type_hint(key, schema),
                );
            }
        }
    }

    fn table(&mut self, entries: &[Entry], source: &Source, schema: &Json, key: &str) {
        let empty = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&empty);
        for entry in entries {
            let path = join(key, &entry.key);
            match (properties.get(&entry.key), &schema["additionalProperties"]) {
                (Some(inner), _) | (None, inner @ Json::Object(_)) => {
                    self.value(&entry.node, inner, &path);
                }
                (None, Json::Bool(true)) => {}
                (None, _) => self.unknown_key(entry, properties, key, &path),
            }
        }
        if schema["maxProperties"] == 1 {
            self.one_table(entries, source, properties, key);
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            let Some(name) = name.as_str() else { continue };
            if entries.iter().any(|entry| entry.key == name) {
                continue;
            }
            let path = join(key, name);
            let property = &properties[name];
            let is_table = property["type"] == "object";
            let kind = if is_table { "section" } else { "key" };
            self.errors.push(RecipeError::new(
                ErrorKind::MissingKey,
                source.clone(),
                &path,
                None,
                format!("missing {kind}"),
                if is_table {
                    format!("add `[{path}]`: {}", first_sentence(property))
                } else {
                    format!("add `{name} = ...`: {}", first_sentence(property))
                },
            ));
        }
    }

    /// A table whose one table inside names an implementation.
    fn one_table(
        &mut self,
        entries: &[Entry],
        source: &Source,
        known: &Map<String, Json>,
        key: &str,
    ) {
        // Unknown names are reported already.
        let mut named = entries
            .iter()
            .filter(|entry| known.is_empty() || known.contains_key(&entry.key));
        let first = named.next();
        for other in named {
            self.errors.push(RecipeError::new(
                ErrorKind::Conflict,
                other.key_source.clone(),
                join(key, &other.key),
                None,
                format!("`[{key}]` takes one table, and more are there"),
                format!(
                    "keep one of {}",
                    list_tables(key, entries.iter().map(|entry| &entry.key))
                ),
            ));
        }
        if first.is_some() {
            return;
        }
        let (path, reason, hint) = match known.iter().next() {
            Some((name, schema)) if known.len() == 1 => {
                let path = join(key, name);
                let hint = format!("add `[{path}]`: {}", first_sentence(schema));
                (path, "missing section", hint)
            }
            _ => (
                key.to_owned(),
                "no table inside",
                format!("add one of {}", list_tables(key, known.keys())),
            ),
        };
        self.errors.push(RecipeError::new(
            ErrorKind::MissingKey,
            source.clone(),
            path,
            None,
            reason,
            hint,
        ));
    }

    fn unknown_key(&mut self, entry: &Entry, known: &Map<String, Json>, key: &str, path: &str) {
        let (place, section) = if key.is_empty() {
            ("at the top level".to_owned(), "the top level".to_owned())
        } else {
            (format!("in `[{key}]`"), format!("`[{key}]`"))
        };
        let kind = match entry.node.value {
            Value::Table(_) => "section",
            _ => "key",
        };
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        let elsewhere = || {
            let mut paths = Vec::new();
            all_paths(self.schema, "", &mut paths);
            // Workloads of benchmarks repeat keys of training, which are meant more often.
            paths.sort_by_key(|path| path.starts_with("bench."));
            paths
                .into_iter()
                .find(|path| path.rsplit('.').next() == Some(entry.key.as_str()))
        };
        let hint = if let Some(name) = nearest(&entry.key, &names) {
            format!("did you mean `{name}`?")
        } else if let Some(path) = elsewhere() {
            format!("did you mean `{path}`?")
        } else {
            format!("{section} knows {}", list(&names))
        };
        self.errors.push(RecipeError::new(
            ErrorKind::UnknownKey,
            entry.key_source.clone(),
            path,
            None,
            format!("no such {kind} {place}"),
            hint,
        ));
    }

    fn array(&mut self, node: &Node, items: &[Node], schema: &Json, key: &str) {
        let least = schema["minItems"].as_u64().unwrap_or(0);
        let most = schema["maxItems"].as_u64().unwrap_or(u64::MAX);
        let len = items.len() as u64;
        if len < least || len > most {
            let wanted = if least == most {
                format!("exactly {least}")
            } else if most == u64::MAX {
                format!("at least {least}")
            } else {
                format!("{least} to {most}")
            };
            self.push(
                ErrorKind::WrongType,
                node,
                key,
                format!("expected {wanted} values, got {len}"),
                type_hint(key, schema),
            );
        }
        for (index, item) in items.iter().enumerate() {
            self.value(item, &schema["items"], &format!("{key}[{index}]"));
        }
    }

    fn string(&mut self, node: &Node, text: &str, schema: &Json, key: &str) {
        let least = schema["minLength"].as_u64().unwrap_or(0);
        if (text.trim().chars().count() as u64) < least {
            self.push(
                ErrorKind::OutOfRange,
                node,
                key,
                "must not be empty".to_owned(),
                format!("`{key}`: {}", first_sentence(schema)),
            );
        }
    }

    fn choice(&mut self, node: &Node, choices: &[&str], schema: &Json, key: &str) {
        let Value::String(text) = &node.value else {
            self.push(
                ErrorKind::WrongType,
                node,
                key,
                format!("expected a string, got {}", node.value.type_name()),
                format!("choose one of {}", list(choices)),
            );
            return;
        };
        if choices.contains(&text.as_str()) {
            return;
        }
        let hint = nearest(text, choices).map_or_else(
            || match schema["default"].as_str() {
                Some(default) => format!("set `{} = \"{default}\"`, the default", last(key)),
                None => format!("choose one of {}", list(choices)),
            },
            |name| format!("did you mean `\"{name}\"`?"),
        );
        self.push(
            ErrorKind::OutOfRange,
            node,
            key,
            format!("must be one of {}", list(choices)),
            hint,
        );
    }

    fn range(&mut self, node: &Node, number: f64, schema: &Json, key: &str) {
        let bound = |name: &str| schema[name].as_f64();
        let is_low = bound("minimum").is_some_and(|least| number < least);
        let broken = if is_low {
            Some(format!("must be at least {}", schema["minimum"]))
        } else if bound("exclusiveMinimum").is_some_and(|least| number <= least) {
            Some(format!("must be above {}", schema["exclusiveMinimum"]))
        } else if bound("maximum").is_some_and(|most| number > most) {
            Some(format!("must be at most {}", schema["maximum"]))
        } else if bound("exclusiveMaximum").is_some_and(|most| number >= most) {
            Some(format!("must be below {}", schema["exclusiveMaximum"]))
        } else {
            None
        };
        let Some(mut reason) = broken else { return };
        if is_low && let Some(why) = schema["x-reason"].as_str() {
            reason = format!("{reason}: {why}");
        }
        self.push(
            ErrorKind::OutOfRange,
            node,
            key,
            reason,
            limits_hint(key, schema),
        );
    }
}

/// The names that a string may be, where the schema lists them.
pub(crate) fn choices(schema: &Json) -> Option<Vec<&str>> {
    if let Some(names) = schema["enum"].as_array() {
        return Some(names.iter().filter_map(Json::as_str).collect());
    }
    let variants = schema["oneOf"].as_array()?;
    variants
        .iter()
        .map(|variant| variant["const"].as_str())
        .collect()
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn list(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

fn list_tables<'a>(key: &str, names: impl Iterator<Item = &'a String>) -> String {
    let tables: Vec<_> = names.map(|name| format!("`[{key}.{name}]`")).collect();
    tables.join(", ")
}

fn first_sentence(schema: &Json) -> String {
    let text = schema["description"].as_str().unwrap_or("a value");
    text.split_once(". ")
        .map_or(text, |(first, _)| first)
        .trim_end_matches('.')
        .to_owned()
}

fn type_hint(key: &str, schema: &Json) -> String {
    match &schema["default"] {
        Json::Null => format!("`{key}`: {}", first_sentence(schema)),
        default => format!("for example `{} = {default}`, the default", last(key)),
    }
}

fn limits_hint(key: &str, schema: &Json) -> String {
    match &schema["default"] {
        Json::Null => {
            let bound = |names: [&str; 2]| {
                names
                    .iter()
                    .find_map(|name| schema.get(*name))
                    .map(ToString::to_string)
            };
            let least = bound(["minimum", "exclusiveMinimum"]);
            let most = bound(["maximum", "exclusiveMaximum"]);
            match (least, most) {
                (Some(least), Some(most)) => {
                    format!("choose a value between {least} and {most}")
                }
                (Some(least), None) => format!("choose a value from {least} up"),
                (None, Some(most)) => format!("choose a value up to {most}"),
                (None, None) => format!("`{key}`: {}", first_sentence(schema)),
            }
        }
        default => format!("set `{} = {default}`, the default", last(key)),
    }
}

/// The dotted names of all keys and sections.
pub(crate) fn all_paths(schema: &Json, prefix: &str, paths: &mut Vec<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = join(prefix, name);
        all_paths(inner, &path, paths);
        paths.push(path);
    }
}
