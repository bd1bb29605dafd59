//! Errors of decoding.

use asyncthink_model::MIN_TEMPERATURE;

use crate::agent_id::AgentId;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is already in use.
    #[error("agent {} is already decoding", .0.0)]
    DuplicateAgent(AgentId),
    /// Nobody has this name.
    #[error("agent {} is not known to the engine", .0.0)]
    UnknownAgent(AgentId),
    /// A prompt must hold at least one token.
    #[error("agent {} has an empty prompt", .0.0)]
    EmptyPrompt(AgentId),
    /// More tokens are to be kept than there are.
    #[error("agent {} has {num_tokens} tokens, not {keep_tokens} to keep", .agent.0)]
    KeepTokens {
        /// The agent.
        agent: AgentId,
        /// Tokens to keep.
        keep_tokens: usize,
        /// Tokens that it has.
        num_tokens: usize,
    },
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
    /// The KV cache cannot hold one sequence, though it had all of it.
    #[error(
        "the KV cache cannot hold a sequence of {num_tokens} tokens: it takes {needed_blocks} blocks of {block_size} tokens, \
         and {num_blocks} blocks of {block_bytes} bytes fit into the budget of {budget_bytes} bytes"
    )]
    CacheBudget {
        /// Tokens of the sequence.
        num_tokens: usize,
        /// Blocks that it takes.
        needed_blocks: usize,
        /// Tokens of a block.
        block_size: usize,
        /// Blocks that fit.
        num_blocks: usize,
        /// Bytes of a block in all layers.
        block_bytes: u64,
        /// Bytes that the cache may take.
        budget_bytes: u64,
    },
    /// A limit of the engine is zero.
    #[error("`{0}` must be at least 1")]
    Zero(&'static str),
    /// No runner computes in this type on this device.
    #[error("sampling in {dtype} is not supported for a model that computes in {compute}")]
    Dtype {
        /// Type asked for.
        dtype: &'static str,
        /// Type of the decoder.
        compute: &'static str,
    },
    /// The temperature is not a number that logits can be divided by.
    #[error(
        "invalid temperature: {0:e}; it is 0, which takes the likeliest token, or at least {MIN_TEMPERATURE:e}"
    )]
    Temperature(f64),
    /// The number of likeliest tokens is out of range.
    #[error("invalid top-k: {0}; it is at least 1 and at most 2147483647")]
    TopK(u32),
    /// The probability mass is out of range.
    #[error("invalid top-p: {0}; it is above 0 and at most 1")]
    TopP(f32),
    /// The share of the largest probability is out of range.
    #[error("invalid min-p: {0}; it is at least 0 and at most 1")]
    MinP(f32),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] asyncthink_model::Error),
    /// libtorch refused an operation.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
