//! Implementations that a recipe key selects by name.

/// Named implementations of one kind, in the order of registration.
///
/// A registry is a plain value: whoever has more implementations than the project ships adds them with [`Registry::with`].
#[derive(Clone, Debug)]
pub struct Registry<T> {
    kind: &'static str,
    entries: Vec<(&'static str, T)>,
}

impl<T> Registry<T> {
    /// An empty registry; `kind` names what it holds in error messages, for instance `policy loss`.
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            entries: Vec::new(),
        }
    }

    /// Adds an implementation. One of the same name is replaced.
    #[must_use]
    pub fn with(mut self, name: &'static str, implementation: T) -> Self {
        self.entries.retain(|(other, _)| *other != name);
        self.entries.push((name, implementation));
        self
    }

    /// Implementation of this name.
    ///
    /// # Errors
    /// When there is none; the text names those that exist.
    pub fn get(&self, name: &str) -> Result<&T, String> {
        let entry = self.entries.iter().find(|(known, _)| *known == name);
        entry
            .map(|(_, implementation)| implementation)
            .ok_or_else(|| {
                let names: Vec<String> = self.names().map(|name| format!("`{name}`")).collect();
                format!(
                    "no such {}: `{name}`; there is {}",
                    self.kind,
                    names.join(", ")
                )
            })
    }

    /// Names, in the order of registration.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.entries.iter().map(|(name, _)| *name)
    }

    /// Names and implementations, in the order of registration.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
        self.entries
            .iter()
            .map(|(name, implementation)| (*name, implementation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_errors_list_them() {
        let registry = Registry::new("loss").with("a", 1).with("b", 2).with("a", 3);
        assert_eq!(registry.names().collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(registry.get("a"), Ok(&3));
        let error = registry.get("c").unwrap_err();
        assert_eq!(error, "no such loss: `c`; there is `b`, `a`");
        assert_eq!(registry.iter().map(|(_, value)| value).sum::<i32>(), 5);
    }
}
