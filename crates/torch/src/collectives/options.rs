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
    /// Keeps groups on one store apart. After a restart on the same store, name or store's prefix must be new.
    pub name: String,
}
