//! Places that metrics go to, besides `metrics.jsonl`.

use std::path::Path;

use serde_json::Value;

use crate::error::Result;

/// A place for the metrics of a stage. `metrics.jsonl` is always written; a sink is one more.
pub trait MetricsSink: std::fmt::Debug {
    /// Takes the metrics of one step: a JSON object as in `metrics.jsonl`, with its `step` and its `timing`.
    ///
    /// # Errors
    /// When they cannot be written; the run then fails.
    fn write(&mut self, line: &Value) -> Result<()>;

    /// Puts everything on the disk; called before a checkpoint is written.
    ///
    /// # Errors
    /// When the disk refuses.
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A stage that opens its sinks.
#[derive(Clone, Copy, Debug)]
pub struct SinkContext<'a> {
    /// Folder of the stage, which exists.
    pub stage_folder: &'a Path,
    /// Steps that the checkpoint holds which the run resumes from; 0 for a new run. Later steps were lost and will be written
    /// again.
    pub resumed_step: u64,
}

/// Opens a sink.
pub type OpenSink = fn(&SinkContext<'_>) -> Result<Box<dyn MetricsSink>>;
