//! The rules that every episode of a rollout obeys.

use asyncthink_engine::SamplingParams;
use asyncthink_protocol::Protocol;

/// Protocol, budgets and sampling.
#[derive(Clone, Debug)]
pub struct RolloutSettings {
    /// Tags, capacity and what an overflowing Fork does.
    pub protocol: Protocol,
    /// Decoded tokens after which a worker is cut.
    pub worker_max_tokens: usize,
    /// Decoded tokens after which the organizer is cut; every Join starts the count anew.
    pub organizer_max_tokens: usize,
    /// Decoded tokens of the organizer over the whole episode, if bounded.
    pub organizer_total_tokens: Option<usize>,
    /// How tokens are drawn. Ends of sequence are those of the tokenizer.
    pub sampling: SamplingParams,
}
