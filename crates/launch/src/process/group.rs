//! The ranks of this node in one attempt.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;

use super::pump::Pumps;
use super::rank::{RankEnd, RunningRank, SpawnContext};
use crate::failure::{Exit, Failure, RankFailure};
use crate::ids::{LocalRank, NodeShare, Rank};
use crate::rank::read_error_file;
use crate::wire::{MAX_FAILURES, PastFailure, Start};

/// How long output is waited for after the last rank has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// The ranks of this node in one attempt. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct RankGroup {
    attempt: u32,
    share: NodeShare,
    host: String,
    has_logs: bool,
    ranks: Vec<RunningRank>,
    pumps: Pumps,
    stop: Option<Stop>,
}

/// Progress of stopping the ranks.
#[derive(Clone, Copy, Debug)]
struct Stop {
    began: SystemTime,
    /// When those that are left are killed, and then given up.
    next: Instant,
    is_killed: bool,
}

impl RankGroup {
    /// Starts the ranks. One that cannot be started has ended at once, with
    /// the reason.
    ///
    /// The calling thread must live as long as the ranks: the kernel ties
    /// their lives to the thread that started them.
    pub(crate) fn start(context: &SpawnContext<'_>, start: &Start, share: NodeShare) -> Self {
        let output = &context.plan.output;
        let mut group = Self {
            attempt: start.attempt,
            share,
            host: context.plan.host.clone(),
            has_logs: output.log_dir.is_some() || output.has_files(),
            ranks: Vec::new(),
            pumps: Pumps::new(Arc::clone(context.console)),
            stop: None,
        };
        for local_rank in share.local_ranks() {
            let mut rank = RunningRank {
                local_rank,
                process: None,
                folder: None,
                end: None,
            };
            let started = rank.start(context, start, &share, &mut group.pumps);
            if let Err(error) = &started {
                rank.end = Some(RankEnd {
                    exit: Exit::NotStarted(error.to_string()),
                    at: SystemTime::now(),
                    is_own: true,
                });
            }
            group.ranks.push(rank);
            if started.is_err() {
                break;
            }
        }
        group
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Takes note of a rank's end.
    pub(crate) fn ended(&mut self, local_rank: LocalRank, exit: Exit, at: SystemTime) {
        if let Some(rank) = self.ranks.get_mut(local_rank.index()) {
            let is_own = self.stop.is_none();
            rank.end.get_or_insert(RankEnd { exit, at, is_own });
        }
    }

    /// Whether every rank has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.ranks.iter().all(|rank| rank.end.is_some())
    }

    /// Whether a rank has ended other than well.
    pub(crate) fn has_failed(&self) -> bool {
        self.ranks.iter().any(RunningRank::has_failed)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Time at which [`RankGroup::kill_overdue`] must be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.stop.map(|stop| stop.next)
    }

    /// Asks all ranks to end, once. A rank that somebody has stopped (`SIGSTOP`, `^Z`) must go on to hear of it.
    pub(crate) fn stop(&mut self, signal: Signal, grace: Duration) {
        if self.stop.is_none() {
            self.stop = Some(Stop {
                began: SystemTime::now(),
                next: Instant::now() + grace,
                is_killed: false,
            });
            self.signal(signal);
            self.signal(Signal::CONT);
        }
    }

    /// Kills the ranks that have not ended.
    pub(crate) fn kill(&mut self, grace: Duration) {
        if let Some(stop) = &mut self.stop {
            stop.is_killed = true;
            stop.next = Instant::now() + grace;
        }
        self.signal(Signal::KILL);
    }

    /// After the deadline: kills the ranks that did not end in their time, and
    /// says which; or gives up those that were killed and are still there.
    pub(crate) fn kill_overdue(&mut self, now: Instant, grace: Duration) -> Vec<Rank> {
        let Some(stop) = self.stop.filter(|stop| stop.next <= now) else {
            return Vec::new();
        };
        let left = self.ranks.iter_mut().filter(|rank| rank.end.is_none());
        if stop.is_killed {
            left.for_each(|rank| {
                rank.end = Some(RankEnd {
                    exit: Exit::Unkillable,
                    at: SystemTime::now(),
                    is_own: true,
                });
            });
            return Vec::new();
        }
        let killed = left.map(|rank| self.share.rank(rank.local_rank)).collect();
        self.kill(grace);
        killed
    }

    /// Ends the attempt, after the last rank has: kills what the ranks left
    /// behind, carries the rest of their output, and gives the failures in
    /// the order of time; none if all went well.
    pub(crate) fn finish(mut self) -> Vec<PastFailure> {
        self.signal(Signal::KILL);
        self.reap();
        self.pumps.drain(DRAIN);
        let mut failures: Vec<(SystemTime, Failure)> = self
            .ranks
            .iter()
            .filter_map(|rank| self.failure(rank))
            .collect();
        failures.sort_by_key(|(at, _)| *at);
        let now = SystemTime::now();
        failures
            .into_iter()
            .take(MAX_FAILURES)
            .map(|(at, failure)| {
                let ago = now.duration_since(at).unwrap_or_default();
                let millis_ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
                PastFailure {
                    failure,
                    millis_ago,
                }
            })
            .collect()
    }

    /// The failure of a rank and its time, unless it ended well or only
    /// because it was stopped.
    fn failure(&self, rank: &RunningRank) -> Option<(SystemTime, Failure)> {
        if !rank.has_failed() {
            return None;
        }
        let RankEnd {
            exit,
            at: ended,
            is_own,
        } = rank.end.clone()?;
        let report = rank
            .folder
            .as_ref()
            .and_then(|folder| read_error_file(&folder.error_file()));
        // Ending takes a while, and others may fail of it in the meantime:
        // the time in the error file tells the order better.
        let reported = report.as_ref().and_then(|report| report.at);
        let at = reported.map_or(ended, |reported| reported.min(ended));
        if !is_own && self.stop.is_some_and(|stop| at > stop.began) {
            return None;
        }
        // It was about to end with that when the launcher's signal came.
        let meant = report.as_ref().and_then(|report| report.exit_code);
        let exit = match (meant, exit) {
            (Some(code), Exit::Signal(_)) if !is_own => Exit::Code(code),
            (_, exit) => exit,
        };
        let log = rank.folder.as_ref().filter(|_| self.has_logs);
        let failure = RankFailure {
            rank: self.share.rank(rank.local_rank),
            local_rank: rank.local_rank,
            node_rank: self.share.node_rank,
            host: self.host.clone(),
            pid: rank.process.as_ref().map(|process| process.child.id()),
            exit,
            message: report.map(|report| report.message),
            log: log.map(|folder| folder.path().display().to_string()),
        };
        Some((at, Failure::Rank(failure)))
    }

    fn signal(&self, signal: Signal) {
        let processes = self.ranks.iter().filter_map(|rank| rank.process.as_ref());
        processes.for_each(|process| process.signal(signal));
    }

    fn reap(&mut self) {
        for rank in &mut self.ranks {
            let exit = rank.end.as_ref().map(|end| &end.exit);
            let has_ended = !matches!(exit, None | Some(Exit::Unkillable));
            if let Some(process) = rank.process.as_mut().filter(|_| has_ended) {
                process.reap();
            }
        }
    }
}

impl Drop for RankGroup {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.reap();
    }
}
