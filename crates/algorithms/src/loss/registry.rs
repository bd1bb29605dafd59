//! Policy losses that `[grpo.loss]` can name.

use std::sync::Arc;

use asyncthink_recipe::{GrpoSection, Registry};
use serde_json::Value;

use super::{TokenLoss, clip};

/// Makes a loss from `[grpo]`, whose `loss` holds its own options; the error says which key is wrong, and why.
pub type BuildLoss = fn(&GrpoSection) -> Result<Arc<dyn TokenLoss>, String>;

/// A policy loss as the recipe names it.
#[derive(Clone, Copy, Debug)]
pub struct PolicyLossSpec {
    /// JSON schema of its own table.
    pub schema: fn() -> Value,
    /// Makes it.
    pub build: BuildLoss,
}

/// The policy losses of this crate, by name.
pub fn registry() -> Registry<PolicyLossSpec> {
    Registry::new("policy loss").with("clip", clip::SPEC)
}
