//! Policy losses that `[grpo.loss]` can name.

use asyncthink_recipe::Registry;

use super::spec::PolicyLossSpec;
use super::{cispo, clip, gspo};

/// The policy losses of this crate, by name.
pub fn registry() -> Registry<PolicyLossSpec> {
    Registry::new("policy loss")
        .with("clip", clip::SPEC)
        .with("cispo", cispo::SPEC)
        .with("gspo", gspo::SPEC)
}
