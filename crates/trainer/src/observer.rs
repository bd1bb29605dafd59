//! What a run tells the outside, and how the outside stops it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use asyncthink_recipe::Stage;

use asyncthink_metrics::Phase;

/// A run that begins or goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct RunStart {
    /// The stage.
    pub stage: Stage,
    /// Steps already done.
    pub step: u64,
    /// Steps in all.
    pub num_steps: u64,
    /// The checkpoint that the run goes on from.
    pub resumed_from: Option<PathBuf>,
    /// Values of the model, those of adapters not counted.
    pub num_parameters: i64,
    /// Values that training changes.
    pub num_trained: i64,
    /// Rows or problems to train on.
    pub num_items: usize,
}

/// A finished step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport<'a> {
    /// The step, counted from 1.
    pub step: u64,
    /// Steps in all.
    pub num_steps: u64,
    /// The figures worth showing, in order.
    pub figures: &'a [(&'static str, f64)],
}

/// Memory of the first step beside its prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes that were predicted.
    pub predicted_bytes: u64,
    /// Most bytes that were taken, beyond those before the model was loaded.
    pub peak_bytes: u64,
    /// Most tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Whether layers keep their inputs only.
    pub activation_checkpointing: bool,
}

/// Is told how a run goes. The library itself prints nothing.
pub trait Observer {
    /// A run begins or goes on.
    fn started(&mut self, _start: &RunStart) {}

    /// A phase of the current step advanced to `done` of `total` (episodes, micro-batches, or 0 of 0).
    fn phase(&mut self, _phase: Phase, _done: u64, _total: u64) {}

    /// A step ended.
    fn step(&mut self, _report: &StepReport<'_>) {}

    /// The first step of this process has shown how much memory a step takes.
    fn memory(&mut self, _report: &MemoryReport) {}

    /// A checkpoint is complete.
    fn saved(&mut self, _dir: &Path, _step: u64) {}

    /// Something the user should know, which does not stop the run.
    fn warning(&mut self, _message: &str) {}
}

/// Watches nothing.
impl Observer for () {}

/// Asks a run to save and stop; shared with signal handlers.
///
/// Holds the number of the signal, 0 while there is none.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicUsize>);

impl StopFlag {
    /// Asks the run to stop, as if by `signal`.
    pub fn request(&self, signal: i32) {
        self.0
            .store(usize::try_from(signal).unwrap_or(0), Ordering::SeqCst);
    }

    /// The signal that asked, if any.
    pub fn requested(&self) -> Option<i32> {
        i32::try_from(self.0.load(Ordering::SeqCst))
            .ok()
            .filter(|signal| *signal != 0)
    }

    /// The cell itself, for `signal_hook::flag::register_usize`.
    pub fn cell(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0)
    }
}
