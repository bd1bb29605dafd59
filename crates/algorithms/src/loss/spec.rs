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

/// Default of `clip_eps_low` and `clip_eps_high`.
const CLIP_EPS: f64 = 0.2;

/// Refuses limits of the token's ratio where a loss does not read them; `remedy` says what to set instead.
pub(super) fn refuse_token_clip(section: &GrpoSection, remedy: &str) -> Result<(), String> {
    let is_set = |value: f64| (value - CLIP_EPS).abs() > f64::EPSILON;
    for (key, value) in [
        ("clip_eps_low", section.clip_eps_low),
        ("clip_eps_high", section.clip_eps_high),
    ] {
        if is_set(value) {
            return Err(format!(
                "`{}` does not read `grpo.{key}` = {value}: {remedy}, and remove `grpo.{key}`",
                section.loss.name
            ));
        }
    }
    Ok(())
}
