//! Batched sampling with a KV cache: ids in, ids and log-probs out; knows no tags and no text.
//!
//! Agents enter and leave between steps of a [`BatchedEngine`]; every step feeds all tokens that are not yet cached (prompts,
//! injected text, last samples) as one flat batch and samples one token for each running agent.
//!
//! One file per part: [`settings`](EngineSettings), sequence, cache slots, model runner, sampler, engine.

mod engine;
mod error;
mod request;
mod runner;
mod sampler;
mod sequence;
mod settings;
mod slots;

pub use engine::{BatchedEngine, EngineStats};
pub use error::{Error, Result};
pub use request::{AgentId, Request, Sampled};
pub use sampler::Temperature;
pub use settings::EngineSettings;
