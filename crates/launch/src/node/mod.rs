//! One node of a launch, from joining to its outcome.

mod agent;
mod join;
mod launch;
mod signals;

pub use agent::Outcome;
pub use launch::{LaunchIo, launch};
pub use signals::{Forwarding, forward_signals};
