//! State that the parts of one step share.

use asyncthink_metrics::StepClock;

use crate::observer::{Observer, StopFlag};

/// State that the parts of one step share.
pub(super) struct StepContext<'a> {
    /// Counted from 1.
    pub(super) step: u64,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) stop: &'a StopFlag,
    pub(super) clock: StepClock,
}
