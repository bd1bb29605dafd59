//! Batched sampling with a paged KV cache: ids in, ids and log-probs out; knows no tags and no text.
//!
//! Agents enter and leave between steps of a [`BatchedEngine`]. Every step computes one token of each agent that decodes and,
//! within a budget, parts of prompts and injected text, as one flat batch. Keys and values lie in blocks: agents whose
//! contexts begin alike share them, and an agent keeps its own while it waits for text.
//!
//! One file per part: settings, sequence, block manager, scheduler, runner, sampler, engine.

mod agent_id;
mod block_manager;
mod engine;
mod error;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod settings;
mod stats;

pub use agent_id::AgentId;
pub use engine::BatchedEngine;
pub use error::{Error, Result};
pub use request::{Request, Sampled};
pub use sampler::{SamplingParams, Temperature};
pub use settings::{DEFAULT_BLOCK_SIZE, DEFAULT_MAX_BATCH_TOKENS, EngineSettings};
pub use stats::EngineStats;
