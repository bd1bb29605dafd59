//! A policy loss as the recipe names it.

use std::sync::Arc;

use asyncthink_recipe::GrpoSection;
use serde_json::Value;

use super::TokenLoss;

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
