//! A task's section of a recipe: its faults, and a view of it for rules over several keys.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// Kind of a [`ConfigFault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A key is absent that the other keys make necessary.
    MissingKey,
    /// A value contradicts another value.
    Conflict,
}

/// One thing wrong with a task's section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// Missing key or contradiction.
    pub kind: FaultKind,
    /// The key, relative to the section.
    pub key: &'static str,
    /// Why it is wrong.
    pub reason: String,
    /// Remedy for the user.
    pub hint: String,
}

impl ConfigFault {
    /// A contradiction at `key`.
    pub fn conflict(key: &'static str, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            kind: FaultKind::Conflict,
            key,
            reason: reason.into(),
            hint: hint.into(),
        }
    }

    /// A key that is absent and needed.
    pub fn missing(key: &'static str, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            kind: FaultKind::MissingKey,
            key,
            reason: reason.into(),
            hint: hint.into(),
        }
    }
}

/// A task's section as written, before its form is known to be right.
///
/// Values of the wrong type read as absent: another check reports them. Numbers and pairs fall back to the defaults of the
/// schema.
#[derive(Debug, Clone, Copy)]
pub struct ConfigView<'a> {
    section: &'a Value,
    schema: &'a Value,
}

impl<'a> ConfigView<'a> {
    /// Views `section`, whose form `schema` describes.
    pub fn new(section: &'a Value, schema: &'a Value) -> Self {
        Self { section, schema }
    }

    /// Tells whether the key is written.
    pub fn has(&self, key: &str) -> bool {
        self.section.get(key).is_some()
    }

    /// A number as written or by default.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.value(key)?.as_f64()
    }

    /// An array of two integers as written or by default.
    pub fn pair(&self, key: &str) -> Option<(i64, i64)> {
        match self.value(key)?.as_array()?.as_slice() {
            [first, second] => Some((first.as_i64()?, second.as_i64()?)),
            _ => None,
        }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.section
            .get(key)
            .or_else(|| self.schema["properties"][key].get("default"))
    }
}

/// JSON schema of a struct, without references: the form of a section that serde reads into `T`.
pub fn schema_of<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .subschema_for::<T>()
        .to_value()
}
