//! Metrics of a run: `metrics.jsonl`, further sinks, the clock of a step.
//!
//! `metrics.jsonl` ([`MetricsLog`]) is always written. The recipe's `metrics` names further places, each a [`MetricsSink`] in a file
//! of its own with one line in [`sinks`].

mod clock;
mod error;
mod log;
mod registry;
mod sink;
mod tensorboard;

pub use clock::{ByteCounts, Phase, StepClock, Timing};
pub use error::{Error, Result};
pub use log::MetricsLog;
pub use registry::sinks;
pub use sink::{MetricsSink, OpenSink, SinkContext};
