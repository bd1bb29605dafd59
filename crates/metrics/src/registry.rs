//! Metrics sinks that the recipe's `metrics` can name.

use asyncthink_recipe::Registry;

use crate::sink::OpenSink;
use crate::tensorboard;

/// The metrics sinks of this crate, by name.
pub fn sinks() -> Registry<OpenSink> {
    Registry::<OpenSink>::new("metrics sink").with("tensorboard", tensorboard::open)
}
