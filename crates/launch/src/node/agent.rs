//! One node of a launch: starts and stops its ranks as node 0 orders, and
//! reports what becomes of them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::event::{Event, Inbox};
use crate::failure::{Exit, Failure, FailureReport};
use crate::hub::Link;
use crate::ids::{LocalRank, NodeRank, NodeShare};
use crate::plan::{LaunchPlan, Nodes, StopSignal};
use crate::process::{Console, LogFolder, RankGroup, SpawnContext};
use crate::wire::{End, Order, Report, Start};

/// How long a node without ranks waits for node 0 to agree that it leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Outcome of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All ranks are done.
    Done,
    /// A signal ended it.
    Signalled(StopSignal),
    /// A rank or a node failed, for the last time.
    Failed(FailureReport),
}

/// One node of a launch.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    plan: &'a LaunchPlan,
    console: &'a Arc<Console>,
    inbox: &'a Inbox,
    link: Link,
    logs: Option<LogFolder>,
    group: Option<RankGroup>,
    /// When the ranks are stopped because one has failed.
    stop_at: Option<Instant>,
    signal: Option<StopSignal>,
    /// When this node leaves without node 0's consent.
    leave_at: Option<Instant>,
    lost: Option<Failure>,
}

impl<'a> Node<'a> {
    pub(crate) fn new(
        plan: &'a LaunchPlan,
        console: &'a Arc<Console>,
        inbox: &'a Inbox,
        link: Link,
    ) -> Self {
        Self {
            plan,
            console,
            inbox,
            link,
            logs: None,
            group: None,
            stop_at: None,
            signal: None,
            leave_at: None,
            lost: None,
        }
    }

    /// Takes part in the launch until its end.
    pub(crate) fn run(mut self) -> Result<Outcome, Error> {
        loop {
            match self.next_event() {
                Some(Event::Order(Order::Start(start))) => self.start_or_decline(&start)?,
                Some(Event::Order(Order::Stop { attempt, signal })) => {
                    self.ordered_stop(attempt, signal);
                }
                Some(Event::Order(Order::End(end))) => return Ok(self.outcome(end)),
                Some(Event::Order(Order::Refused(reason))) => {
                    return Err(self.no_entry(|endpoint| Error::Refused { endpoint, reason }));
                }
                Some(Event::NotALauncher(reason)) => {
                    return Err(self.no_entry(|endpoint| Error::NotALauncher { endpoint, reason }));
                }
                Some(Event::Lost(reason)) => self.lose(reason),
                Some(Event::Ended {
                    attempt,
                    local_rank,
                    exit,
                    at,
                }) => self.rank_ended(attempt, local_rank, exit, at),
                Some(Event::Signal(signal)) => self.signalled(signal),
                Some(Event::Order(Order::Heartbeat)) | None => {}
            }
            self.watch_time();
            self.finish_attempt();
            if let Some(outcome) = self.departure() {
                return Ok(outcome);
            }
        }
    }

    /// The next event; `None` when something is due.
    fn next_event(&self) -> Option<Event> {
        let group = self.group.as_ref().and_then(RankGroup::deadline);
        let due = [self.stop_at, group, self.leave_at];
        match due.into_iter().flatten().min() {
            // The node holds a sender itself, so the channel is open.
            None => self.inbox.events.recv().ok(),
            Some(due) => {
                let left = due.saturating_duration_since(Instant::now());
                self.inbox.events.recv_timeout(left).ok()
            }
        }
    }

    fn start_or_decline(&mut self, start: &Start) -> Result<(), Error> {
        if !start.holds(self.plan.num_local_ranks) || self.group.is_some() {
            self.lose("its order to start makes no sense".to_owned());
        }
        if self.signal.is_none() && self.lost.is_none() {
            return self.start(start);
        }
        self.link.report(Report::Stopped {
            attempt: start.attempt,
            failures: Vec::new(),
        });
        Ok(())
    }

    fn start(&mut self, start: &Start) -> Result<(), Error> {
        self.announce(start);
        let logs = match self.logs.take() {
            Some(logs) => logs,
            None => self.open_logs(start.node_rank)?,
        };
        let context = SpawnContext {
            plan: self.plan,
            console: self.console,
            logs: &logs,
            events: &self.inbox.sender,
        };
        let share = NodeShare {
            node_rank: start.node_rank,
            first_rank: start.first_rank,
            num_local_ranks: self.plan.num_local_ranks,
        };
        let group = RankGroup::start(&context, start, share);
        self.logs = Some(logs);
        if group.has_failed() {
            self.stop_at = Some(Instant::now());
        }
        self.group = Some(group);
        Ok(())
    }

    fn announce(&self, start: &Start) {
        let Start {
            attempt,
            max_restarts,
            num_nodes,
            world_size,
            master_addr,
            master_port,
            ..
        } = start;
        if let Some(cause) = &start.cause {
            let text = format!("{cause}\nrestart {attempt} of {max_restarts}");
            self.console.note(&text);
        }
        let ranks = if *world_size == 1 { "rank" } else { "ranks" };
        let nodes = if *num_nodes == 1 { "node" } else { "nodes" };
        self.console.note(&format!(
            "{world_size} {ranks} on {num_nodes} {nodes}, meeting at {master_addr} port {master_port}"
        ));
    }

    fn open_logs(&self, node_rank: NodeRank) -> Result<LogFolder, Error> {
        let logs = LogFolder::create(self.plan, node_rank)?;
        let output = &self.plan.output;
        if output.log_dir.is_some() || output.has_files() {
            self.console
                .note(&format!("logs are in `{}`", logs.root().display()));
        }
        Ok(logs)
    }

    fn ordered_stop(&mut self, attempt: u32, signal: Option<i32>) {
        let grace = self.plan.timing.grace;
        let signal = signal.and_then(StopSignal::from_number);
        let signal = signal.map_or(Signal::TERM, StopSignal::for_ranks);
        if let Some(group) = self
            .group
            .as_mut()
            .filter(|group| group.attempt() == attempt)
        {
            group.stop(signal, grace);
        }
    }

    fn rank_ended(&mut self, attempt: u32, local_rank: LocalRank, exit: Exit, at: SystemTime) {
        let Some(group) = self
            .group
            .as_mut()
            .filter(|group| group.attempt() == attempt)
        else {
            return;
        };
        group.ended(local_rank, exit, at);
        if group.has_failed() && !group.is_stopping() && self.stop_at.is_none() {
            self.stop_at = Some(Instant::now() + self.plan.gather);
        }
    }

    fn signalled(&mut self, signal: StopSignal) {
        let grace = self.plan.timing.grace;
        if self.signal.is_some() {
            if signal == StopSignal::Int {
                match &mut self.group {
                    Some(group) => group.kill(grace),
                    None => self.leave_at = Some(Instant::now()),
                }
            }
            return;
        }
        self.signal = Some(signal);
        if let Some(group) = &mut self.group {
            group.stop(signal.for_ranks(), grace);
        } else {
            // Other nodes may have ranks to stop, if any were started.
            let others = self.logs.as_ref().map_or(Duration::ZERO, |_| grace);
            self.leave_at = Some(Instant::now() + others + LEAVE_TIMEOUT);
        }
        self.link.report(Report::Signalled {
            signal: signal.number(),
        });
        self.console.note(&format!("stopping because of {signal}"));
    }

    fn lose(&mut self, reason: String) {
        let host = match &self.plan.nodes {
            Nodes::One => self.plan.host.clone(),
            Nodes::Several { endpoint, .. } => endpoint.host().to_owned(),
        };
        self.lost = Some(Failure::Node {
            node_rank: NodeRank::new(0),
            host,
            reason,
        });
        if let Some(group) = &mut self.group {
            group.stop(Signal::TERM, self.plan.timing.grace);
        }
    }

    /// The error of a node that cannot take part.
    fn no_entry(&self, error: impl FnOnce(Endpoint) -> Error) -> Error {
        match &self.plan.nodes {
            Nodes::One => Error::Io(std::io::Error::other("node 0 does not take itself")),
            Nodes::Several { endpoint, .. } => error(endpoint.clone()),
        }
    }

    /// Does what is due.
    fn watch_time(&mut self) {
        let now = Instant::now();
        let grace = self.plan.timing.grace;
        let Some(group) = &mut self.group else {
            return;
        };
        if self.stop_at.is_some_and(|at| at <= now) {
            self.stop_at = None;
            if !group.is_stopping() && !group.is_over() {
                group.stop(Signal::TERM, grace);
                let attempt = group.attempt();
                self.link.report(Report::Failed { attempt });
            }
        }
        for rank in group.kill_overdue(now, grace) {
            self.console.note(&format!(
                "rank {rank} has not ended within {} s and is killed",
                grace.as_secs_f64()
            ));
        }
    }

    /// Reports an attempt whose last rank has ended.
    fn finish_attempt(&mut self) {
        let Some(group) = self.group.take_if(|group| group.is_over()) else {
            return;
        };
        self.stop_at = None;
        let attempt = group.attempt();
        let is_done = !group.is_stopping() && !group.has_failed();
        let failures = group.finish();
        self.link.report(if is_done {
            Report::Done { attempt }
        } else {
            Report::Stopped { attempt, failures }
        });
    }

    /// The end, where it does not come from node 0.
    fn departure(&mut self) -> Option<Outcome> {
        if self.group.is_some() {
            return None;
        }
        let has_lost = self.lost.is_some();
        let is_late = self.leave_at.is_some_and(|at| at <= Instant::now());
        if let Some(signal) = self.signal.filter(|_| has_lost || is_late) {
            return Some(Outcome::Signalled(signal));
        }
        let report = FailureReport::new(vec![self.lost.take()?])?;
        Some(Outcome::Failed(report))
    }

    fn outcome(&self, end: End) -> Outcome {
        match end {
            End::Done => Outcome::Done,
            End::Signalled(number) => {
                let signal = StopSignal::from_number(number).or(self.signal);
                Outcome::Signalled(signal.unwrap_or(StopSignal::Term))
            }
            End::Failed(report) => {
                for other in &report.others {
                    let text = match other.message() {
                        None => format!("also: {other}"),
                        Some(message) => format!("also: {other}\n{message}"),
                    };
                    self.console.note(&text);
                }
                Outcome::Failed(report)
            }
        }
    }
}
