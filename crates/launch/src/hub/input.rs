//! Inputs of the hub.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use crate::ids::NodeRank;
use crate::wire::{Connection, Hello, Report};

/// Input of the hub.
#[derive(Debug)]
pub(crate) enum Input {
    /// A node wants to take part; `reply` gets its rank, or none.
    Joined {
        hello: Hello,
        connection: Arc<Connection>,
        reply: Sender<Option<NodeRank>>,
    },
    /// A node reports.
    Report(NodeRank, Report),
    /// A node is lost; it was heard of last at `since`.
    Lost {
        node: NodeRank,
        reason: String,
        since: Instant,
    },
    /// This node cannot go on.
    Abort(String),
    /// This node is gone.
    Leave,
}
