//! The attention backends that are known, by name.

use std::sync::Arc;

use super::Attention;
use super::sdpa::Sdpa;

/// Attention backends by name.
#[derive(Clone, Debug)]
pub struct AttentionBackends(Vec<Arc<dyn Attention>>);

impl AttentionBackends {
    /// The backends of this crate, a line each; the first is the default.
    pub fn builtin() -> Self {
        Self(vec![
            Arc::new(Sdpa), //
        ])
    }

    /// These backends and one more.
    #[must_use]
    pub fn with(mut self, backend: Arc<dyn Attention>) -> Self {
        self.0.push(backend);
        self
    }

    /// The backend of a name.
    pub fn find(&self, name: &str) -> Option<Arc<dyn Attention>> {
        self.0
            .iter()
            .find(|backend| backend.name() == name)
            .cloned()
    }

    /// Every name.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|backend| backend.name()).collect()
    }
}

/// The backend that a decoder is made with unless another is asked for.
pub(crate) fn default_backend() -> Arc<dyn Attention> {
    Arc::new(Sdpa)
}
