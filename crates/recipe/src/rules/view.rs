//! The document as rules read it.

use serde_json::Value as Json;

use crate::document::{Node, Value};
use crate::error::{ErrorKind, RecipeError};

/// A document, its schema, and the contradictions found so far.
pub(super) struct Rules<'a> {
    pub(super) root: &'a Node,
    pub(super) schema: &'a Json,
    pub(super) errors: Vec<RecipeError>,
}

impl Rules<'_> {
    /// Reports the value at `key`, as written or by default.
    pub(super) fn push(&mut self, kind: ErrorKind, key: &str, reason: &str, hint: &str) {
        let (source, value) = self.root.locate(key);
        let written = value
            .filter(|value| !matches!(value, Value::Table(_)))
            .map(Value::display);
        let default = self.default(key).map(ToString::to_string);
        let is_default = written.is_none() && default.is_some();
        let mut error = RecipeError::new(kind, source, key, written.or(default), reason, hint);
        error.is_default = is_default;
        self.errors.push(error);
    }

    /// Reports a contradiction at `key`.
    pub(super) fn conflict(&mut self, key: &str, reason: &str, hint: &str) {
        self.push(ErrorKind::Conflict, key, reason, hint);
    }

    /// Tells whether `key` is written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.root.locate(key).1.is_some()
    }

    /// The default of a key, where it has one.
    fn default(&self, key: &str) -> Option<&Json> {
        let mut schema = self.schema;
        for part in key.split('.') {
            schema = schema.get("properties")?.get(part)?;
        }
        schema.get("default").filter(|default| !default.is_object())
    }

    /// A number as written or by default.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        match self.root.locate(key).1 {
            Some(Value::Integer(number)) => Some(*number as f64),
            Some(Value::Float(number)) if number.is_finite() => Some(*number),
            Some(_) => None,
            None => self.default(key)?.as_f64(),
        }
    }

    /// An array of two integers as written.
    pub(super) fn pair(&self, key: &str) -> Option<(f64, f64)> {
        match self.root.locate(key).1 {
            Some(Value::Array(items)) => match items.as_slice() {
                [first, second] => match (&first.value, &second.value) {
                    (Value::Integer(first), Value::Integer(second)) => {
                        Some((*first as f64, *second as f64))
                    }
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// A truth value as written or by default.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        match self.root.locate(key).1 {
            Some(Value::Boolean(flag)) => Some(*flag),
            Some(_) => None,
            None => self.default(key)?.as_bool(),
        }
    }

    /// A text as written or by default.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.root.locate(key).1 {
            Some(Value::String(text)) => Some(text),
            Some(_) => None,
            None => self.default(key)?.as_str(),
        }
    }
}
