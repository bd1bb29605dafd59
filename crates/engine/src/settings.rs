//! Limits and number types of an engine.

use asyncthink_model::Precision;
use tch::Kind;

/// Tokens of a block unless said otherwise.
pub const DEFAULT_BLOCK_SIZE: usize = 16;

/// Rows of a step unless said otherwise.
pub const DEFAULT_MAX_BATCH_TOKENS: usize = 2048;

/// Settings of an engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineSettings {
    /// Most agents that run at a time; others wait. At most `max_batch_tokens` run in any case.
    pub max_agents: usize,
    /// Most tokens that one step computes: a row of each agent that decodes, then parts of prompts.
    pub max_batch_tokens: usize,
    /// Tokens of one block of the KV cache.
    pub block_size: usize,
    /// Most bytes that the KV cache may take; `None` for what `max_agents` sequences of the model's context need.
    pub max_cache_bytes: Option<u64>,
    /// Number types of the decoder.
    pub precision: Precision,
    /// Type that sampling computes in, and that the KV cache has; `None` for the one that the decoder computes in.
    pub dtype: Option<Kind>,
    /// Whether decoding steps on a GPU are recorded as CUDA graphs and replayed.
    pub cuda_graphs: bool,
}

impl EngineSettings {
    /// Settings in f32.
    pub fn new(max_agents: usize) -> Self {
        Self {
            max_agents,
            max_batch_tokens: DEFAULT_MAX_BATCH_TOKENS,
            block_size: DEFAULT_BLOCK_SIZE,
            max_cache_bytes: None,
            precision: Precision::F32,
            dtype: None,
            cuda_graphs: true,
        }
    }

    /// Type that sampling computes in.
    pub fn compute(&self) -> Kind {
        self.dtype.unwrap_or(self.precision.compute())
    }
}
