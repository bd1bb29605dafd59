//! Failures of a launch.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{LocalRank, NodeRank, Rank};

/// Exit code of a rank whose input was wrong; the same again would fail again.
const EXIT_INPUT: i32 = 2;

/// How a rank ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It never began; the system's reason.
    NotStarted(String),
    /// It did not end, not even when killed.
    Unkillable,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(signal) => {
                let name = signal_hook::low_level::signal_name(*signal);
                write!(f, "was ended by signal {signal}")?;
                name.map_or(Ok(()), |name| write!(f, " ({name})"))
            }
            Self::NotStarted(reason) => write!(f, "could not be started: {reason}"),
            Self::Unkillable => write!(f, "does not end, although it was killed"),
        }
    }
}

/// A rank that failed by itself, and not because it was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankFailure {
    /// The rank.
    pub rank: Rank,
    /// The rank on its node.
    pub local_rank: LocalRank,
    /// Its node.
    pub node_rank: NodeRank,
    /// The name of its node.
    pub host: String,
    /// Its process id, where it had one.
    pub pid: Option<u32>,
    /// How it ended.
    pub exit: Exit,
    /// Message in its error file.
    pub message: Option<String>,
    /// The folder on its node that has its output, where it has.
    pub log: Option<String>,
}

/// Why a launch failed, or one of the reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Failure {
    /// A rank failed.
    Rank(RankFailure),
    /// The launcher of a node is gone, and its ranks with it.
    Node {
        /// The node.
        node_rank: NodeRank,
        /// Its name.
        host: String,
        /// How that was noticed.
        reason: String,
    },
    /// Not all nodes came.
    Missing {
        /// Those that did not.
        node_ranks: Vec<NodeRank>,
        /// All that should.
        num_nodes: u32,
        /// How long they were waited for.
        waited_secs: u64,
    },
}

impl Failure {
    /// Message that the failed rank left.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Rank(failure) => failure.message.as_deref(),
            _ => None,
        }
    }

    /// Hint at a remedy.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Rank(RankFailure {
                exit: Exit::Signal(9),
                ..
            }) => {
                "the kernel kills programs that need more memory than there is; `dmesg` on that machine says so"
            }
            Self::Rank(RankFailure {
                exit: Exit::Unkillable,
                ..
            }) => {
                "a process that cannot be killed waits for a device or a file system; look at that machine"
            }
            Self::Rank(RankFailure {
                message: None, log, ..
            }) => {
                return Some(match log {
                    Some(log) => format!("its output is in `{log}` on that machine"),
                    None => {
                        "its last lines are above; `--log-dir DIR` keeps the output of every rank"
                            .to_owned()
                    }
                });
            }
            Self::Rank(_) => return None,
            Self::Node { .. } => "look at that machine and at its launcher's output",
            Self::Missing { .. } => {
                "start the launcher with the same `--nnodes`, `--rdzv-endpoint` and `--rdzv-id` on every node"
            }
        };
        Some(hint.to_owned())
    }

    /// A rank found its input wrong.
    fn is_input(&self) -> bool {
        let Self::Rank(failure) = self else {
            return false;
        };
        failure.exit == Exit::Code(EXIT_INPUT)
    }

    fn is_unkillable(&self) -> bool {
        matches!(self, Self::Rank(failure) if failure.exit == Exit::Unkillable)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rank(failure) => {
                let RankFailure {
                    rank,
                    local_rank,
                    host,
                    exit,
                    ..
                } = failure;
                write!(f, "rank {rank} on {host} (local rank {local_rank}")?;
                if let Some(pid) = failure.pid {
                    write!(f, ", process {pid}")?;
                }
                write!(f, ") {exit}")
            }
            Self::Node {
                node_rank,
                host,
                reason,
            } => write!(f, "node {node_rank} ({host}) is lost: {reason}"),
            Self::Missing {
                node_ranks,
                num_nodes,
                waited_secs,
            } => {
                let missing: Vec<String> = node_ranks.iter().map(ToString::to_string).collect();
                let noun = if missing.len() == 1 { "node" } else { "nodes" };
                write!(
                    f,
                    "{noun} {} of {num_nodes} did not join within {waited_secs} s",
                    missing.join(", ")
                )
            }
        }
    }
}

/// Everything that failed in the last attempt of a launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureReport {
    /// The first failure, which the others may follow from.
    pub root: Failure,
    /// The others, in the order of time.
    pub others: Vec<Failure>,
}

impl FailureReport {
    /// From failures in the order of time; `None` without any.
    pub(crate) fn new(failures: Vec<Failure>) -> Option<Self> {
        let mut failures = failures.into_iter();
        let root = failures.next()?;
        let others = failures.collect();
        Some(Self { root, others })
    }

    fn all(&self) -> impl Iterator<Item = &Failure> {
        std::iter::once(&self.root).chain(&self.others)
    }

    /// Whether every failed rank found its input wrong.
    pub fn is_input(&self) -> bool {
        self.all().all(Failure::is_input)
    }

    /// Whether the same again may go better.
    pub(crate) fn is_worth_a_restart(&self) -> bool {
        !self.is_input() && !self.all().any(Failure::is_unkillable)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A failed rank of node 0.
    pub(crate) fn rank_failure(rank: u32, exit: Exit) -> Failure {
        Failure::Rank(RankFailure {
            rank: Rank::new(rank),
            local_rank: LocalRank::new(rank),
            node_rank: NodeRank::new(0),
            host: "here".to_owned(),
            pid: Some(17),
            exit,
            message: None,
            log: None,
        })
    }

    #[test]
    fn failures_are_one_line() {
        let show = |exit| rank_failure(1, exit).to_string();
        assert_eq!(
            show(Exit::Code(3)),
            "rank 1 on here (local rank 1, process 17) ended with exit code 3"
        );
        assert_eq!(
            show(Exit::Signal(9)),
            "rank 1 on here (local rank 1, process 17) was ended by signal 9 (SIGKILL)"
        );
        let missing = Failure::Missing {
            node_ranks: vec![NodeRank::new(1), NodeRank::new(3)],
            num_nodes: 4,
            waited_secs: 600,
        };
        assert_eq!(
            missing.to_string(),
            "nodes 1, 3 of 4 did not join within 600 s"
        );
    }

    #[test]
    fn wrong_input_is_not_tried_again() {
        let report = |exits: &[i32]| {
            let failures = exits.iter().map(|code| rank_failure(0, Exit::Code(*code)));
            FailureReport::new(failures.collect()).expect("a failure")
        };
        assert!(report(&[2, 2]).is_input() && !report(&[2, 2]).is_worth_a_restart());
        assert!(!report(&[2, 1]).is_input() && report(&[2, 1]).is_worth_a_restart());
        let stuck = FailureReport::new(vec![rank_failure(0, Exit::Unkillable)]);
        assert!(!stuck.expect("a failure").is_worth_a_restart());
        assert_eq!(FailureReport::new(Vec::new()), None);
    }
}
