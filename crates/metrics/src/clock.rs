//! Seconds and exchanged bytes of a step.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

/// Bytes by kind of operation between ranks.
pub type ByteCounts = BTreeMap<&'static str, u64>;

/// Phase of a step that time is booked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Sampling episodes.
    Rollout,
    /// Grading, rewards, advantages, rows.
    Reward,
    /// Log-probabilities of the frozen reference model.
    Reference,
    /// Log-probabilities of rows without a gradient, to compare them with the sampler's.
    Score,
    /// Forward and backward passes.
    Train,
    /// Clipping and the optimizer's update.
    Optimizer,
    /// Evaluation on validation problems.
    Eval,
    /// Writing checkpoints and episode files.
    Save,
}

/// Seconds by phase of one step.
#[derive(Clone, Debug)]
pub struct StepClock {
    started: Instant,
    seconds: BTreeMap<Phase, f64>,
    seconds_before: f64,
    exchanged_before: ByteCounts,
}

/// The `timing` object of a line.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// Seconds of the whole step.
    pub step_seconds: f64,
    /// Seconds by phase.
    pub phase_seconds: BTreeMap<Phase, f64>,
    /// Tokens per second by phase.
    pub tokens_per_second: BTreeMap<Phase, f64>,
    /// Bytes that this rank put into operations between ranks, by kind; kinds without any are left out.
    pub exchanged_bytes: ByteCounts,
}

impl Timing {
    /// Adds what the step did after its clock was read.
    pub fn add(&mut self, phase: Phase, seconds: f64) {
        *self.phase_seconds.entry(phase).or_default() += seconds;
        self.step_seconds += seconds;
    }
}

impl Default for StepClock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            seconds: BTreeMap::new(),
            seconds_before: 0.0,
            exchanged_before: ByteCounts::new(),
        }
    }
}

impl StepClock {
    /// A clock of a step that began with saving the checkpoint of the one before; `exchanged_before` are the bytes
    /// that this rank had exchanged by then.
    pub fn after_saving(seconds: f64, exchanged_before: ByteCounts) -> Self {
        let mut clock = Self {
            seconds_before: seconds,
            exchanged_before,
            ..Self::default()
        };
        if seconds > 0.0 {
            clock.add(Phase::Save, seconds);
        }
        clock
    }

    /// Books seconds that were measured elsewhere; less than zero takes them back.
    pub fn add(&mut self, phase: Phase, seconds: f64) {
        *self.seconds.entry(phase).or_default() += seconds;
    }

    /// Runs `work` and books its time on `phase`.
    pub fn time<T>(&mut self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.book(phase, started);
        result
    }

    /// Books the time since `started` on `phase`.
    pub fn book(&mut self, phase: Phase, started: Instant) {
        self.add(phase, started.elapsed().as_secs_f64());
    }

    /// The `timing` object, given tokens by phase and the bytes that this rank has exchanged by now.
    pub fn timing(&self, tokens: &[(Phase, usize)], exchanged: &ByteCounts) -> Timing {
        let tokens_per_second = tokens
            .iter()
            .filter_map(|&(phase, tokens)| {
                let seconds = *self.seconds.get(&phase)?;
                (seconds > 0.0).then(|| (phase, tokens as f64 / seconds))
            })
            .collect();
        Timing {
            step_seconds: self.seconds_before + self.started.elapsed().as_secs_f64(),
            phase_seconds: self.seconds.clone(),
            tokens_per_second,
            exchanged_bytes: exchanged_bytes(&self.exchanged_before, exchanged),
        }
    }
}

fn exchanged_bytes(before: &ByteCounts, now: &ByteCounts) -> ByteCounts {
    now.iter()
        .map(|(kind, bytes)| {
            let earlier = before.get(kind).copied().unwrap_or_default();
            (*kind, bytes.saturating_sub(earlier))
        })
        .filter(|(_, bytes)| *bytes > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_its_own_bytes_and_leaves_out_what_it_does_not_use() {
        let before = ByteCounts::from([("all_gather", 8), ("broadcast", 3)]);
        let clock = StepClock::after_saving(0.0, before.clone());
        let now = ByteCounts::from([("all_gather", 24), ("broadcast", 3), ("reduce_scatter", 64)]);
        let exchanged: Vec<_> = clock
            .timing(&[], &now)
            .exchanged_bytes
            .into_iter()
            .collect();
        assert_eq!(exchanged, [("all_gather", 16), ("reduce_scatter", 64)]);
        assert!(clock.timing(&[], &before).exchanged_bytes.is_empty());
    }
}
