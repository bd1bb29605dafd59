//! The state of one agent.

use asyncthink_data::TokenId;

use crate::request::{AgentId, Request};
use crate::sampler::AgentSampler;

/// One decoding sequence with its cache slot.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) agent: AgentId,
    pub(crate) slot: i64,
    pub(crate) cached_tokens: usize,
    /// Tokens that the cache does not hold yet; the last sampled one is always among them.
    pub(crate) pending: Vec<i64>,
    pub(crate) is_running: bool,
    pub(crate) sampler: AgentSampler,
}

impl Sequence {
    pub(crate) fn new(request: &Request, slot: i64) -> Self {
        let mut sequence = Self {
            agent: request.agent,
            slot,
            cached_tokens: 0,
            pending: Vec::with_capacity(request.prompt.len()),
            is_running: true,
            sampler: AgentSampler::new(request.seed),
        };
        sequence.append(&request.prompt);
        sequence
    }

    pub(crate) fn append(&mut self, ids: &[TokenId]) {
        self.pending
            .extend(ids.iter().map(|token| i64::from(token.0)));
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.cached_tokens + self.pending.len()
    }
}
