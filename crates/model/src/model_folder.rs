//! Place that a model is read from.

use std::path::{Path, PathBuf};

/// A model's folder. That of an adapter folder's base model may be given with it, in place of the name or path that the
/// folder's `adapter_config.json` holds.
#[derive(Clone, Copy, Debug)]
pub struct ModelFolder<'a> {
    dir: &'a Path,
    base: Option<&'a Path>,
}

impl<'a> ModelFolder<'a> {
    /// A folder with what it says itself.
    pub fn new(dir: &'a Path) -> Self {
        Self { dir, base: None }
    }

    /// The folder with another base model, if one is given. It has a meaning for adapter folders only.
    #[must_use]
    pub fn with_base(self, base: Option<&'a Path>) -> Self {
        Self { base, ..self }
    }

    /// The folder itself.
    pub fn dir(&self) -> &'a Path {
        self.dir
    }

    /// The base model that was given with it.
    pub fn given_base(&self) -> Option<&'a Path> {
        self.base
    }
}

impl<'a> From<&'a Path> for ModelFolder<'a> {
    fn from(dir: &'a Path) -> Self {
        Self::new(dir)
    }
}

impl<'a> From<&'a PathBuf> for ModelFolder<'a> {
    fn from(dir: &'a PathBuf) -> Self {
        Self::new(dir)
    }
}
