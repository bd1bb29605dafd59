//! Policy losses that `[grpo.loss]` can name.

use asyncthink_recipe::Registry;

use super::clip;
use super::spec::PolicyLossSpec;

/// The policy losses of this crate, by name.
pub fn registry() -> Registry<PolicyLossSpec> {
    Registry::new("policy loss").with("clip", clip::SPEC)
}
