//! Names of agents.

/// Names one decoding sequence; chosen by the caller, unique among the agents that the engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(pub u64);
