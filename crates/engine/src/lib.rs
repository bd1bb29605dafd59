//! Batched sampling with a KV cache: ids in, ids and log-probs out; knows no tags and no text.
//!
//! [`Engine`] is the whole contract with the code above it. Agents enter and leave between steps; every step feeds all
//! tokens that are not yet cached (prompts, injected text, last samples) as one flat batch and samples one token for
//! each running agent. [`BatchedEngine`] implements it over a [`asyncthink_model::Decoder`].

mod batched;
mod error;
mod sampler;
mod slots;

pub use batched::{BatchedEngine, EngineConfig, EngineStats};
pub use error::{Error, Result};
pub use sampler::Temperature;

use asyncthink_data::TokenId;

/// Names one decoding sequence; chosen by the caller, unique among the agents that the engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(pub u64);

/// A new sequence.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its name.
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

/// Decodes many agents at once.
pub trait Engine {
    /// Admits an agent; it samples its first token in the next step.
    ///
    /// # Errors
    /// When the engine is full, the name is taken, or the prompt is empty or longer than the model's context.
    fn add(&mut self, request: Request) -> Result<()>;

    /// Appends given tokens after what the agent has, to be prefilled in the next step; a paused agent runs again.
    ///
    /// # Errors
    /// When the agent is unknown or would outgrow the model's context.
    fn extend(&mut self, agent: AgentId, ids: &[TokenId]) -> Result<()>;

    /// Stops sampling for an agent; its cache is kept.
    ///
    /// # Errors
    /// When the agent is unknown.
    fn pause(&mut self, agent: AgentId) -> Result<()>;

    /// Forgets an agent and frees its cache.
    ///
    /// # Errors
    /// When the agent is unknown.
    fn remove(&mut self, agent: AgentId) -> Result<()>;

    /// Samples one token for every running agent, in order of admission.
    ///
    /// # Errors
    /// When the model fails.
    fn step(&mut self) -> Result<Vec<Sampled>>;

    /// Agents that can still be admitted.
    fn num_free(&self) -> usize;

    /// Most tokens that one sequence may hold.
    fn max_sequence_tokens(&self) -> usize;
}
