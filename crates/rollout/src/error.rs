//! Errors of rollouts. Format errors are outcomes of an episode, not errors.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] asyncthink_engine::Error),
    /// Another source of tokens failed.
    #[error("the agents' backend failed: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A replica of the model could not be made or run.
    #[error(transparent)]
    Model(#[from] asyncthink_model::Error),
    /// A model card could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A model card is not one.
    #[error("{context}: {source}")]
    Card {
        /// Operation that failed.
        context: String,
        /// Why it failed.
        source: serde_json::Error,
    },
    /// Text could not be tokenised.
    #[error(transparent)]
    Data(#[from] asyncthink_data::Error),
    /// The budget of the KV cache cannot be applied.
    #[error("`engine.cache_memory`: {0}")]
    CacheMemory(String),
    /// The engine cannot hold even one episode.
    #[error("an episode needs {needed} agents at once, the engine holds {available}")]
    TooFewSlots {
        /// The pool's capacity.
        needed: usize,
        /// Free slots of the engine.
        available: usize,
    },
    /// The KV cache can never hold one episode whose agents use up their budgets.
    #[error(
        "the KV cache cannot hold one episode: an organizer of up to {organizer_tokens} tokens and {num_workers} workers of \
         up to {worker_tokens} take {needed_blocks} blocks of {block_size} tokens, and {num_blocks} blocks of {block_bytes} \
         bytes fit into the budget of {budget_bytes} bytes"
    )]
    EpisodeCache {
        /// Tokens of the longest prompt and the organizer's budget.
        organizer_tokens: usize,
        /// Workers that run at a time.
        num_workers: usize,
        /// Budget of a worker.
        worker_tokens: usize,
        /// Blocks that all of them take.
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
    /// The engine has nothing to compute for agents that decode: a defect of this crate.
    #[error("the engine has no token for an agent that decodes")]
    Stalled,
    /// A prompt leaves no room in the model's context.
    #[error(
        "the prompt of problem {prompt_index} has {num_tokens} tokens, the model's context {max_tokens}"
    )]
    PromptTooLong {
        /// Position of the problem in its data set.
        prompt_index: usize,
        /// Length of the prompt.
        num_tokens: usize,
        /// Context of the model.
        max_tokens: usize,
    },
    /// The recorded events do not form a timeline: a defect of this crate.
    #[error("inconsistent episode record: {0}")]
    Timeline(#[from] asyncthink_protocol::TimelineError),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
