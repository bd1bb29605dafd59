//! How many tokens agents are expected to decode.

use crate::episode::Episode;

/// Running means over earlier episodes, by role.
///
/// An engine begins with the longest expected agents where some must wait; no result depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExpectedTokens {
    organizer: Mean,
    worker: Mean,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    total: u64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: usize) {
        self.total += value as u64;
        self.count += 1;
    }

    fn get(self) -> usize {
        let mean = self.total.checked_div(self.count).unwrap_or(0);
        usize::try_from(mean).unwrap_or(usize::MAX)
    }
}

impl ExpectedTokens {
    /// Takes an episode into account.
    pub(crate) fn observe(&mut self, episode: &Episode) {
        self.organizer.add(episode.organizer.num_decoded());
        for worker in &episode.workers {
            self.worker.add(worker.record.num_decoded());
        }
    }

    /// Tokens of an organizer; 0 before the first episode.
    pub(crate) fn of_organizer(&self) -> usize {
        self.organizer.get()
    }

    /// Tokens of a worker; 0 before the first one.
    pub(crate) fn of_worker(&self) -> usize {
        self.worker.get()
    }
}
