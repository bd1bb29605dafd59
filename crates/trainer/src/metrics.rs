//! `metrics.jsonl`: one line per step.
//!
//! Figures that the run's inputs determine stand at the top level of a line; everything measured with a clock stands in
//! its `timing` object. Lines without `timing` of a resumed run equal those of an unbroken one, byte for byte.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use asyncthink_torch::Traffic;
use fs_err as fs;
use serde::Serialize;

use crate::checkpoint::sync;
use crate::error::{Error, Result};

/// Longest line that [`MetricsLog::last_line`] finds; lines have about one kilobyte.
const MAX_LINE_BYTES: u64 = 1 << 16;

/// The metrics file of one stage, open for appending.
#[derive(Debug)]
pub struct MetricsLog {
    file: fs::File,
    path: PathBuf,
    offset_bytes: u64,
    missing_bytes: u64,
}

impl MetricsLog {
    /// Opens the file and cuts it to the first `keep_bytes`, which a checkpoint recorded; 0 starts anew.
    ///
    /// A file that is shorter than that is kept as it is; [`MetricsLog::missing_bytes`] tells.
    ///
    /// # Errors
    /// When the file cannot be opened or cut.
    pub fn open(path: &Path, keep_bytes: u64) -> Result<Self> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)?;
        let offset_bytes = file.metadata()?.len().min(keep_bytes);
        file.set_len(offset_bytes)?;
        file.seek(SeekFrom::Start(offset_bytes))?;
        if let Some(folder) = path.parent() {
            // A checkpoint records the file's length: its name must be on the disk as well.
            sync(folder)?;
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            offset_bytes,
            missing_bytes: keep_bytes - offset_bytes,
        })
    }

    /// How many of the bytes that the checkpoint recorded the file had lost when it was opened.
    pub fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)
            .map_err(|error| Error::stage(format!("writing `{}`", self.path.display()), error))?;
        bytes.push(b'\n');
        self.file.write_all(&bytes)?;
        self.offset_bytes += bytes.len() as u64;
        Ok(())
    }

    /// The newest line, if there is one that can be read.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn last_line(&self) -> Result<Option<serde_json::Value>> {
        let start = self.offset_bytes.saturating_sub(MAX_LINE_BYTES);
        let mut file = fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        file.take(self.offset_bytes - start)
            .read_to_end(&mut tail)?;
        let line = tail.trim_ascii_end().rsplit(|&byte| byte == b'\n').next();
        Ok(line.and_then(|line| serde_json::from_slice(line).ok()))
    }

    /// Puts everything on the disk and returns the length, for a checkpoint to record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_all()?;
        Ok(self.offset_bytes)
    }
}

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
    fn reopening_cuts_what_the_checkpoint_did_not_see() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        assert_eq!(log.last_line().unwrap(), None);
        log.append(&serde_json::json!({"step": 1})).unwrap();
        let offset = log.sync().unwrap();
        log.append(&serde_json::json!({"step": 2})).unwrap();
        assert_eq!(log.last_line().unwrap().unwrap()["step"], 2);
        drop(log);
        let mut log = MetricsLog::open(&path, offset).unwrap();
        assert_eq!(log.last_line().unwrap().unwrap()["step"], 1);
        log.append(&serde_json::json!({"step": 3})).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":1}\n{\"step\":3}\n"
        );
        assert_eq!(log.missing_bytes(), 0);
        drop(log);
        let longer = MetricsLog::open(&path, 100).unwrap();
        assert_eq!(longer.missing_bytes(), 78);
        drop(longer);
        MetricsLog::open(&path, 0).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

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

    #[test]
    fn numbers_are_written_so_that_they_read_back_equal() {
        let value = 0.1_f64 + 0.2;
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(
            serde_json::from_str::<f64>(&text).unwrap().to_bits(),
            value.to_bits()
        );
    }
}
