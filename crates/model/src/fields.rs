//! Typed reading of a JSON object, with errors that name key and value.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An object of `config.json`, or the file itself. A key that is null counts as absent, as in `transformers`.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    name: Option<&'static str>,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The file.
    pub fn top(map: &'a Map<String, Value>) -> Self {
        Self { name: None, map }
    }

    /// The object under a key of the file.
    ///
    /// # Errors
    /// When the key has a value of another kind.
    pub fn object(map: &'a Map<String, Value>, key: &'static str) -> Result<Option<Self>> {
        match map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(inner)) => Ok(Some(Self {
                name: Some(key),
                map: inner,
            })),
            Some(value) => Err(Error::Config(format!("`{key}` must be an object: {value}"))),
        }
    }

    /// The key of this object in the file.
    pub fn name(&self) -> &'static str {
        self.name.unwrap_or("config.json")
    }

    /// A key as messages call it.
    fn path(&self, key: &str) -> String {
        self.name
            .map_or_else(|| key.to_owned(), |name| format!("{name}.{key}"))
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn read<T>(
        &self,
        key: &str,
        kind: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        convert(value)
            .map(Some)
            .ok_or_else(|| Error::Config(format!("`{}` must be {kind}: {value}", self.path(key))))
    }

    /// A number.
    ///
    /// # Errors
    /// When the key has a value of another kind.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    /// A number above 0.
    ///
    /// # Errors
    /// When the key has a value of another kind.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number above 0", |value| {
            value.as_f64().filter(|&number| number > 0.0)
        })
    }

    /// A whole number of at least 1.
    ///
    /// # Errors
    /// When the key has a value of another kind.
    pub fn size(&self, key: &str) -> Result<Option<i64>> {
        self.read(key, "a whole number of at least 1", |value| {
            value.as_i64().filter(|&number| number >= 1)
        })
    }

    /// A string.
    ///
    /// # Errors
    /// When the key has a value of another kind.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    /// True or false.
    ///
    /// # Errors
    /// When the key has a value of another kind.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// A number above 0 that must be there.
    ///
    /// # Errors
    /// When the key is missing or has a value of another kind.
    pub fn required(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A size that must be there.
    ///
    /// # Errors
    /// When the key is missing or has a value of another kind.
    pub fn required_size(&self, key: &str) -> Result<i64> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// The refusal of an object without a key.
    pub fn missing(&self, key: &str) -> Error {
        Error::Config(format!("`{}` is missing", self.path(key)))
    }

    /// A key that is none of `known`.
    pub fn unknown(&self, known: &[&str]) -> Option<&'a str> {
        let mut keys = self.map.iter().filter(|(_, value)| !value.is_null());
        keys.find(|(key, _)| !known.contains(&key.as_str()))
            .map(|(key, _)| key.as_str())
    }

    /// The refusal of what stands under a key.
    pub fn unsupported(&self, key: &str, supported: impl Into<Cow<'static, str>>) -> Error {
        Error::Unsupported {
            key: self.path(key),
            value: self.map.get(key).unwrap_or(&Value::Null).to_string(),
            supported: supported.into(),
        }
    }
}
