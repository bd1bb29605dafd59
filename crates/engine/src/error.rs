//! Errors of decoding.

use asyncthink_model::MIN_TEMPERATURE;

use crate::request::AgentId;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No slot is free.
    #[error("the engine holds its maximum of {max_agents} agents")]
    Full {
        /// Slots that exist.
        max_agents: usize,
    },
    /// The name is already in use.
    #[error("agent {} is already decoding", .0.0)]
    DuplicateAgent(AgentId),
    /// Nobody has this name.
    #[error("agent {} is not known to the engine", .0.0)]
    UnknownAgent(AgentId),
    /// A prompt must hold at least one token.
    #[error("agent {} has an empty prompt", .0.0)]
    EmptyPrompt(AgentId),
    /// The sequence would not fit.
    #[error("agent {} would hold {num_tokens} tokens, more than the {max_tokens} of the model's context", .agent.0)]
    TooLong {
        /// The agent.
        agent: AgentId,
        /// Tokens that it would hold.
        num_tokens: usize,
        /// Tokens that the model can attend to.
        max_tokens: usize,
    },
    /// The logits are not finite: the weights are damaged or training diverged.
    #[error("the model returned logits that are not finite for agent {}", .0.0)]
    NonFinite(AgentId),
    /// The KV cache would outgrow its budget.
    #[error(
        "the KV cache of {num_slots} sequences of {num_tokens} tokens needs {needed_bytes} bytes, more than its budget of \
         {budget_bytes}"
    )]
    CacheBudget {
        /// Sequences held at once.
        num_slots: usize,
        /// Tokens of the longest one.
        num_tokens: usize,
        /// Bytes that the cache would take.
        needed_bytes: u64,
        /// Bytes that it may take.
        budget_bytes: u64,
    },
    /// The temperature is not a number that logits can be divided by.
    #[error(
        "invalid temperature: {0:e}; it is 0, which takes the likeliest token, or at least {MIN_TEMPERATURE:e}"
    )]
    Temperature(f64),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] asyncthink_model::Error),
    /// libtorch refused an operation.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
