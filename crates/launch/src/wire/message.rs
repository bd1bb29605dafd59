//! Messages between node 0 and the other nodes.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureReport};
use crate::ids::{NodeRank, Rank};

/// Most failures of a node, or of a launch, that are told.
pub(crate) const MAX_FAILURES: usize = 16;

/// Message from node 0 to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// A sign of life.
    Heartbeat,
    /// The node is not taken.
    Refused(String),
    /// Start the ranks.
    Start(Start),
    /// Stop the ranks; with a signal, because of it.
    Stop { attempt: u32, signal: Option<i32> },
    /// It is over.
    End(End),
}

/// One attempt, for one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// 0, then the number of restarts.
    pub(crate) attempt: u32,
    pub(crate) max_restarts: u32,
    pub(crate) node_rank: NodeRank,
    pub(crate) num_nodes: u32,
    pub(crate) first_rank: Rank,
    pub(crate) world_size: u32,
    pub(crate) master_addr: String,
    pub(crate) master_port: u16,
    /// Why this is a restart.
    pub(crate) cause: Option<String>,
}

impl Start {
    /// Whether the world has room for that many ranks of the node.
    pub(crate) fn holds(&self, num_local_ranks: NonZeroU32) -> bool {
        let end = self.first_rank.get().checked_add(num_local_ranks.get());
        end.is_some_and(|end| end <= self.world_size) && self.node_rank.get() < self.num_nodes
    }
}

/// End of a launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Done,
    Signalled(i32),
    Failed(FailureReport),
}

/// Message from a node to node 0. Every attempt ends with one `Done` or `Stopped`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// A sign of life.
    Heartbeat,
    /// A rank failed, and the node stops its others.
    Failed { attempt: u32 },
    /// The node was told to end, and stops its ranks.
    Signalled { signal: i32 },
    /// All its ranks are done.
    Done { attempt: u32 },
    /// All its ranks have ended, not all of them well.
    Stopped {
        attempt: u32,
        failures: Vec<PastFailure>,
    },
}

/// A failure and its time, counted back because clocks of machines differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastFailure {
    pub(crate) failure: Failure,
    pub(crate) millis_ago: u64,
}
