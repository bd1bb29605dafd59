//! A table that names an implementation and holds its options.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A table with exactly one table inside: the name of an implementation, and its options.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTable {
    /// Name of the implementation.
    pub name: String,
    /// Options as written, with the defaults of its schema. Empty where the recipe does not name it.
    pub options: toml::Table,
}

impl NamedTable {
    /// A name without options.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            options: toml::Table::new(),
        }
    }

    /// Reads the options into a struct.
    ///
    /// # Errors
    /// The options have another form; the schema of the implementation makes that an error of the recipe.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, toml::de::Error> {
        self.options.clone().try_into()
    }
}

impl Serialize for NamedTable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(&self.name, &self.options)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for NamedTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tables = toml::map::Map::<String, toml::Value>::deserialize(deserializer)?;
        let mut tables = tables.into_iter();
        match (tables.next(), tables.next()) {
            (Some((name, toml::Value::Table(options))), None) => Ok(Self { name, options }),
            _ => Err(D::Error::custom("expected exactly one table")),
        }
    }
}

impl JsonSchema for NamedTable {
    fn schema_name() -> Cow<'static, str> {
        "NamedTable".into()
    }

    /// Any one table; the catalogue knows which.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": { "type": "object", "additionalProperties": true },
        })
    }
}
