//! Values that may be left to the program.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value, or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrAuto<T> {
    /// Chosen from the memory that is free.
    #[default]
    Auto,
    /// As written.
    Given(T),
}

impl<T: Copy> OrAuto<T> {
    /// The value, if one is written.
    pub fn given(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Given(value) => Some(value),
        }
    }
}

/// The word `auto`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Auto,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written<T> {
    Value(T),
    Word(Word),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OrAuto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Value(value) => Self::Given(value),
            Written::Word(Word::Auto) => Self::Auto,
        })
    }
}

impl<T: Serialize> Serialize for OrAuto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => Word::Auto.serialize(serializer),
            Self::Given(value) => value.serialize(serializer),
        }
    }
}
