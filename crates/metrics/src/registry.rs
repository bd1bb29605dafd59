//! Metrics sinks that the recipe's `metrics` can name.

use asyncthink_recipe::Registry;

use crate::sink::OpenSink;

/// The metrics sinks of this crate, by name; none is shipped yet.
pub fn sinks() -> Registry<OpenSink> {
    Registry::new("metrics sink")
}
