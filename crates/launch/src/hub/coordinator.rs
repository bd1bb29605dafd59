//! Decisions of node 0: when all nodes start, stop, restart and end.
//!
//! No clock, no thread and no connection: events go in, actions come out.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::failure::{Failure, FailureReport};
use crate::ids::{NodeRank, NodeShare, Placement};
use crate::wire::{End, MAX_FAILURES, PastFailure, Report};

/// A node that has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) host: String,
    pub(crate) num_local_ranks: NonZeroU32,
}

/// Order for all nodes that have joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Start {
        attempt: u32,
        shares: Vec<NodeShare>,
        world_size: u32,
        cause: Option<String>,
    },
    Stop {
        attempt: u32,
        signal: Option<i32>,
    },
    End(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not all nodes are there.
    Gathering,
    /// All have been told to start.
    Running,
    /// All have been told to stop.
    Stopping,
    /// All have been told that it is over.
    Ended,
}

/// The state of a launch over all its nodes.
#[derive(Debug)]
pub(crate) struct Coordinator {
    max_restarts: u32,
    attempt: u32,
    phase: Phase,
    members: Vec<Option<Member>>,
    /// Which nodes' ranks have all ended in this attempt.
    has_ended: Vec<bool>,
    failures: Vec<(Instant, Failure)>,
    /// Why the next attempt is one more.
    cause: Option<FailureReport>,
    signal: Option<i32>,
    actions: Vec<Action>,
}

impl Coordinator {
    pub(crate) fn new(num_nodes: u32, max_restarts: u32) -> Self {
        let num_nodes = num_nodes as usize;
        Self {
            max_restarts,
            attempt: 0,
            phase: Phase::Gathering,
            members: vec![None; num_nodes],
            has_ended: vec![true; num_nodes],
            failures: Vec::new(),
            cause: None,
            signal: None,
            actions: Vec::new(),
        }
    }

    /// Actions since the last call, in order.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    pub(crate) fn is_gathering(&self) -> bool {
        self.phase == Phase::Gathering
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Nodes that have not joined, or are lost.
    pub(crate) fn missing(&self) -> Vec<NodeRank> {
        let places = (0..).map(NodeRank::new).zip(&self.members);
        let empty = places.filter(|(_, member)| member.is_none());
        empty.map(|(node, _)| node).collect()
    }

    /// A node comes, with the rank that it has or the first that is free; the
    /// error says to it why it is not taken.
    pub(crate) fn join(
        &mut self,
        wanted: Option<NodeRank>,
        member: Member,
    ) -> Result<NodeRank, String> {
        let missing = self.missing();
        let num_nodes = self.members.len();
        let node = match wanted {
            Some(node) if node.index() >= num_nodes => {
                return Err(format!("`--node-rank {node}` must be below {num_nodes}"));
            }
            Some(node) => match self.members.get(node.index()) {
                Some(Some(other)) => {
                    return Err(format!(
                        "node {node} has joined already, from {}",
                        other.host
                    ));
                }
                _ => node,
            },
            None => *missing
                .first()
                .ok_or_else(|| format!("all {num_nodes} nodes have joined already"))?,
        };
        if self.phase == Phase::Ended {
            return Err("the launch is over".to_owned());
        }
        if let Some(place) = self.members.get_mut(node.index()) {
            *place = Some(member);
        }
        self.start_if_complete();
        Ok(node)
    }

    /// A node says something, at `now`.
    pub(crate) fn report(&mut self, node: NodeRank, report: Report, now: Instant) {
        match report {
            Report::Heartbeat => {}
            Report::Failed { attempt } => {
                if attempt == self.attempt {
                    self.stop();
                }
            }
            Report::Signalled { signal } => {
                self.signal.get_or_insert(signal);
                match self.phase {
                    Phase::Gathering => self.end(End::Signalled(signal)),
                    _ => self.stop(),
                }
            }
            Report::Done { attempt } => self.node_ended(node, attempt),
            Report::Stopped { attempt, failures } => {
                if attempt == self.attempt {
                    self.add(failures, now);
                    self.stop();
                }
                self.node_ended(node, attempt);
            }
        }
    }

    /// A node is lost; it was heard of last at `since`.
    pub(crate) fn lose(&mut self, node: NodeRank, reason: &str, since: Instant) {
        let Some(member) = self.members.get_mut(node.index()).and_then(Option::take) else {
            return;
        };
        let has_ended = self.has_ended.get(node.index()).copied();
        if matches!(self.phase, Phase::Running | Phase::Stopping) && has_ended == Some(false) {
            let failure = Failure::Node {
                node_rank: node,
                host: member.host,
                reason: reason.to_owned(),
            };
            self.failures.push((since, failure));
            self.stop();
            self.node_ended(node, self.attempt);
        }
    }

    /// The nodes that are missing were waited for long enough.
    pub(crate) fn give_up(&mut self, waited: Duration) {
        let missing = Failure::Missing {
            node_ranks: self.missing(),
            num_nodes: u32::try_from(self.members.len()).unwrap_or(u32::MAX),
            waited_secs: waited.as_secs(),
        };
        // After a failure that is still the one to look at.
        let mut report = FailureReport {
            root: missing.clone(),
            others: Vec::new(),
        };
        if let Some(cause) = self.cause.take() {
            report = cause;
            report.others.push(missing);
        }
        self.end(End::Failed(report));
    }

    /// Node 0 cannot go on: no other attempt.
    pub(crate) fn abort(&mut self, reason: &str) {
        self.max_restarts = 0;
        if self.phase == Phase::Gathering {
            self.end_unexplained(reason);
        } else {
            self.lose(NodeRank::new(0), reason, Instant::now());
        }
    }

    /// Ends with a failure of node 0 itself.
    fn end_unexplained(&mut self, reason: &str) {
        let member = self.members.first().and_then(Option::as_ref);
        let root = Failure::Node {
            node_rank: NodeRank::new(0),
            host: member.map_or_else(|| "gone".to_owned(), |member| member.host.clone()),
            reason: reason.to_owned(),
        };
        let others = Vec::new();
        self.end(End::Failed(FailureReport { root, others }));
    }

    fn start_if_complete(&mut self) {
        if self.phase != Phase::Gathering {
            return;
        }
        let nums: Option<Vec<NonZeroU32>> = self
            .members
            .iter()
            .map(|member| member.as_ref().map(|member| member.num_local_ranks))
            .collect();
        let Some(placement) = nums.and_then(|nums| Placement::new(&nums)) else {
            return;
        };
        self.phase = Phase::Running;
        self.has_ended.fill(false);
        self.failures.clear();
        self.actions.push(Action::Start {
            attempt: self.attempt,
            shares: placement.shares(),
            world_size: placement.world_size(),
            cause: self.cause.as_ref().map(cause_text),
        });
    }

    fn stop(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Stopping;
            self.actions.push(Action::Stop {
                attempt: self.attempt,
                signal: self.signal,
            });
        }
    }

    fn add(&mut self, failures: Vec<PastFailure>, now: Instant) {
        for past in failures.into_iter().take(MAX_FAILURES) {
            let ago = Duration::from_millis(past.millis_ago);
            let at = now.checked_sub(ago).unwrap_or(now);
            self.failures.push((at, past.failure));
        }
    }

    fn node_ended(&mut self, node: NodeRank, attempt: u32) {
        if attempt != self.attempt {
            return;
        }
        if let Some(has_ended) = self.has_ended.get_mut(node.index()) {
            *has_ended = true;
        }
        let is_over = self.has_ended.iter().all(|has_ended| *has_ended);
        match self.phase {
            Phase::Running if is_over => self.end(End::Done),
            Phase::Stopping if is_over => self.restart_or_end(),
            _ => {}
        }
    }

    fn restart_or_end(&mut self) {
        if let Some(signal) = self.signal {
            self.end(End::Signalled(signal));
            return;
        }
        let mut failures = std::mem::take(&mut self.failures);
        failures.sort_by_key(|(at, _)| *at);
        let failures = failures.into_iter().take(MAX_FAILURES);
        let failures = failures.map(|(_, failure)| failure).collect();
        let Some(report) = FailureReport::new(failures) else {
            self.end_unexplained("its ranks were stopped, and no node says why");
            return;
        };
        if report.is_worth_a_restart() && self.attempt < self.max_restarts {
            self.attempt += 1;
            self.cause = Some(report);
            self.phase = Phase::Gathering;
            self.start_if_complete();
        } else {
            self.end(End::Failed(report));
        }
    }

    fn end(&mut self, end: End) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            self.actions.push(Action::End(end));
        }
    }
}

/// Why an attempt failed, for the nodes that begin another.
fn cause_text(report: &FailureReport) -> String {
    match report.root.message() {
        None => report.root.to_string(),
        Some(message) => format!("{}\n{message}", report.root),
    }
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;
