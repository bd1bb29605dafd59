//! Metrics of a stage: `metrics.jsonl`, further sinks, and the clock of a step.

mod clock;
mod log;
mod sink;

pub use clock::{Phase, StepClock, Timing};
pub use log::MetricsLog;
pub use sink::{MetricsSink, OpenSink, SinkContext, registry as sinks};
