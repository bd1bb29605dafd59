//! Settings of process groups.

use std::time::Duration;

/// Transport of the tensors of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Nothing: a world of one rank.
    Single,
    /// gloo, over TCP between CPUs.
    Gloo,
    /// NCCL, between GPUs.
    Nccl,
}

/// Settings of a [`ProcessGroup`](super::ProcessGroup), but for `rank` the same on all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOptions {
    /// This rank, from 0.
    pub rank: usize,
    /// World size.
    pub world_size: usize,
    /// Timeout of group creation and of each collective.
    pub timeout: Duration,
    /// What the group is for. It keeps groups on one store apart; a later group of the same name is another one, whatever
    /// an earlier one left on the store.
    pub name: String,
    /// Rank whose process serves the store; `None` where another process does, such as a launcher.
    pub store_rank: Option<usize>,
}
