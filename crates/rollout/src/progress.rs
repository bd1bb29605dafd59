//! The progress of a rollout in several threads, and how it is stopped.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::observer::RolloutProgress;

/// How often progress is asked for while only other threads still work.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Progress of all parts together, and whether they are to stop.
pub(crate) struct ProgressBoard {
    total_episodes: usize,
    finished_episodes: AtomicUsize,
    decoded_tokens: AtomicU64,
    num_steps: AtomicU64,
    /// Parts that other threads still work on.
    num_running: AtomicUsize,
    is_stopped: AtomicBool,
}

/// A part that a thread works on; it has ended when this is dropped, by a panic too.
pub(crate) struct RunningPart<'a>(&'a ProgressBoard);

impl Drop for RunningPart<'_> {
    fn drop(&mut self) {
        self.0.num_running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ProgressBoard {
    /// A board for `num_others` parts in other threads.
    pub(crate) fn new(total_episodes: usize, num_others: usize) -> Self {
        Self {
            total_episodes,
            finished_episodes: AtomicUsize::new(0),
            decoded_tokens: AtomicU64::new(0),
            num_steps: AtomicU64::new(0),
            num_running: AtomicUsize::new(num_others),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// One of the parts in other threads; there is one for each of them.
    pub(crate) fn running_part(&self) -> RunningPart<'_> {
        RunningPart(self)
    }

    /// Shows the state until the other threads have ended.
    pub(crate) fn wait_for_others(&self, progress: &mut dyn FnMut(RolloutProgress) -> bool) {
        while self.num_running.load(Ordering::SeqCst) > 0 {
            self.ask(progress);
            std::thread::sleep(POLL_INTERVAL);
        }
        // Their last episodes have not been shown yet.
        self.ask(progress);
    }

    /// Stops all parts where one has failed: what they sample is lost.
    pub(crate) fn stop_on_error<T, E>(&self, result: Result<T, E>) -> Result<T, E> {
        if result.is_err() {
            self.is_stopped.store(true, Ordering::Relaxed);
        }
        result
    }

    /// What one part calls after each of its steps.
    pub(crate) fn reporter(&self) -> impl FnMut(RolloutProgress) -> bool {
        let mut last = RolloutProgress::default();
        move |state| {
            let finished = state.finished_episodes - last.finished_episodes;
            self.finished_episodes
                .fetch_add(finished, Ordering::Relaxed);
            self.decoded_tokens.fetch_add(
                state.decoded_tokens - last.decoded_tokens,
                Ordering::Relaxed,
            );
            self.num_steps.fetch_max(state.num_steps, Ordering::Relaxed);
            last = state;
            !self.is_stopped.load(Ordering::Relaxed)
        }
    }

    /// Shows the state to the caller, who may stop all parts.
    pub(crate) fn ask(&self, progress: &mut dyn FnMut(RolloutProgress) -> bool) -> bool {
        let goes_on = progress(RolloutProgress {
            finished_episodes: self.finished_episodes.load(Ordering::Relaxed),
            total_episodes: self.total_episodes,
            decoded_tokens: self.decoded_tokens.load(Ordering::Relaxed),
            num_steps: self.num_steps.load(Ordering::Relaxed),
        });
        if !goes_on {
            self.is_stopped.store(true, Ordering::Relaxed);
        }
        goes_on
    }
}
