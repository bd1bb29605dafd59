//! Requests to an engine, and its outputs.

use asyncthink_data::TokenId;

use crate::agent_id::AgentId;
use crate::sampler::SamplingParams;

/// A new sequence.
#[derive(Clone, Debug)]
pub struct Request {
    /// Id of the agent.
    pub agent: AgentId,
    /// Ids to condition on; at least one.
    pub prompt: Vec<TokenId>,
    /// Seed of this agent's random numbers, which are a function of the seed and the position: a sample does not depend on
    /// who shares the batch, up to the rounding of batched arithmetic.
    pub seed: u64,
    /// Sampling settings.
    pub sampling: SamplingParams,
    /// Tokens that the agent is expected to sample: where agents wait, the longest start first. It changes no result.
    pub expected_tokens: usize,
}

impl Request {
    /// Samples from the model's own distribution, for an unknown number of tokens.
    pub fn new(agent: AgentId, prompt: Vec<TokenId>, seed: u64) -> Self {
        Self {
            agent,
            prompt,
            seed,
            sampling: SamplingParams::default(),
            expected_tokens: 0,
        }
    }

    /// The request with other sampling settings.
    #[must_use]
    pub fn with_sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// The request with an expected number of sampled tokens.
    #[must_use]
    pub fn with_expected_tokens(mut self, expected_tokens: usize) -> Self {
        self.expected_tokens = expected_tokens;
        self
    }
}

/// One sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Whose token it is.
    pub agent: AgentId,
    /// The token.
    pub token: TokenId,
    /// Natural log of its probability under the distribution sampled from: temperature, filters and banned ids included.
    pub logprob: f32,
    /// Natural log of its probability by the model: the log-softmax of the logits themselves.
    pub raw_logprob: f32,
}
