//! The families that are known, by `model_type`.

use super::Architecture;
use super::llama::Llama;
use super::qwen2::Qwen2;
use super::qwen3::Qwen3;

/// Families of decoders by `model_type`.
#[derive(Clone, Debug)]
pub struct Architectures(Vec<&'static dyn Architecture>);

impl Architectures {
    /// The families of this crate, a line each.
    pub fn builtin() -> Self {
        Self(vec![
            &Llama, //
            &Qwen2, &Qwen3,
        ])
    }

    /// These families and one more.
    #[must_use]
    pub fn with(mut self, architecture: &'static dyn Architecture) -> Self {
        self.0.push(architecture);
        self
    }

    /// The family of a `model_type`.
    pub fn find(&self, model_type: &str) -> Option<&'static dyn Architecture> {
        self.0
            .iter()
            .copied()
            .find(|family| family.model_type() == model_type)
    }

    /// Every `model_type`, as messages list them.
    pub fn names(&self) -> String {
        let names: Vec<String> = self
            .0
            .iter()
            .map(|family| format!("`{}`", family.model_type()))
            .collect();
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
            _ => names.concat(),
        }
    }
}
