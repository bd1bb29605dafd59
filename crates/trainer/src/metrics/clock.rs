//! Seconds and exchanged bytes of a step.

use std::collections::BTreeMap;
use std::time::Instant;

use asyncthink_torch::Traffic;
use serde::Serialize;

/// What a step spends its time on.
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
    /// Writing checkpoints and episode files.
    Save,
}

/// Seconds by phase of one step.
#[derive(Clone, Debug)]
pub struct StepClock {
    started: Instant,
    seconds: BTreeMap<Phase, f64>,
    seconds_before: f64,
    traffic_before: Traffic,
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
    pub exchanged_bytes: BTreeMap<&'static str, u64>,
}

impl Default for StepClock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            seconds: BTreeMap::new(),
            seconds_before: 0.0,
            traffic_before: Traffic::default(),
        }
    }
}

impl StepClock {
    /// A clock of a step that began with saving the checkpoint of the one before; `traffic_before` is what this rank had
    /// put in by then.
    pub fn after_saving(seconds: f64, traffic_before: Traffic) -> Self {
        let mut clock = Self {
            seconds_before: seconds,
            traffic_before,
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

    /// The `timing` object, given tokens by phase and what this rank has put in by now.
    pub fn timing(&self, tokens: &[(Phase, usize)], traffic: Traffic) -> Timing {
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
            exchanged_bytes: exchanged_bytes(self.traffic_before, traffic),
        }
    }
}

fn exchanged_bytes(before: Traffic, now: Traffic) -> BTreeMap<&'static str, u64> {
    let kinds = before.by_kind().into_iter().zip(now.by_kind());
    kinds
        .map(|((kind, before), (_, now))| (kind, now.saturating_sub(before)))
        .filter(|(_, bytes)| *bytes > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_its_own_bytes_and_leaves_out_what_it_does_not_use() {
        let before = Traffic {
            all_gather_bytes: 8,
            broadcast_bytes: 3,
            ..Traffic::default()
        };
        let clock = StepClock::after_saving(0.0, before);
        let now = Traffic {
            all_gather_bytes: 24,
            reduce_scatter_bytes: 64,
            ..before
        };
        let exchanged: Vec<_> = clock.timing(&[], now).exchanged_bytes.into_iter().collect();
        assert_eq!(exchanged, [("all_gather", 16), ("reduce_scatter", 64)]);
        assert!(clock.timing(&[], before).exchanged_bytes.is_empty());
    }
}
