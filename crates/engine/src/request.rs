//! Requests to an engine, and its outputs.

use asyncthink_data::TokenId;

/// Names one decoding sequence; chosen by the caller, unique among the agents that the engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(pub u64);

/// A new sequence.
#[derive(Clone, Debug)]
pub struct Request {
    /// Id of the agent.
    pub agent: AgentId,
    /// Ids to condition on; at least one.
    pub prompt: Vec<TokenId>,
    /// Seed of this agent's own random stream: what it samples does not depend on who shares the batch, up to the
    /// rounding of batched arithmetic.
    pub seed: u64,
}

/// One sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Whose token it is.
    pub agent: AgentId,
    /// The token.
    pub token: TokenId,
    /// Natural log of its probability under the distribution sampled from (temperature included).
    pub logprob: f32,
}
