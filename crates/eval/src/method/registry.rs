//! The methods that are known, by name.

use super::Method;
use super::asyncthink::AsyncThink;
use crate::error::{Error, Result};

/// Evaluation methods by name.
#[derive(Clone, Debug)]
pub struct Methods(Vec<&'static dyn Method>);

impl Methods {
    /// The methods of this crate, a line each.
    pub fn builtin() -> Self {
        Self(vec![
            &AsyncThink, //
        ])
    }

    /// These methods and one more.
    #[must_use]
    pub fn with(mut self, method: &'static dyn Method) -> Self {
        self.0.push(method);
        self
    }

    /// The method of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, name: &str) -> Result<&'static dyn Method> {
        let mut all = self.0.iter().copied();
        all.find(|method| method.name() == name)
            .ok_or_else(|| Error::UnknownMethod {
                name: name.to_owned(),
                known: self.names().join(", "),
            })
    }

    /// Every name.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|method| method.name()).collect()
    }
}
