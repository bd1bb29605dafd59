//! Drives organizer and workers through the protocol over any source of tokens; yields [`Episode`]s.
//!
//! The organizer goes on decoding while its workers run, in the same batch; a Join pauses it until that worker has
//! returned, then the returned text is tokenised, appended and prefilled. Everything the models decoded is kept as
//! ids with the log-probs they were sampled at; text is only ever derived from ids, never the other way round.
//!
//! Decisions where the paper is silent:
//! 1. An episode ends with the token that completes the Answer, and a worker with the token that completes its
//!    RETURN; the end-of-sequence token that would follow carries no decision and is not decoded.
//! 2. A token may run past a tag. What it carries beyond a Join stays in the organizer's context before the injected
//!    text, and actions in it take effect once the Join is served.
//! 3. When the organizer ends, outstanding workers are cancelled at that very step.

mod agent;
mod backend;
mod cache_budget;
mod card;
mod driver;
mod engine_settings;
mod episode;
mod error;
mod expected;
mod graded;
mod observer;
mod organizer;
mod query;
mod sampler;
mod seeds;
mod settings;
mod steps;
mod training;
mod transcript;

pub use agent::AgentRecord;
pub use backend::engine::EngineBackend;
pub use backend::scripted::ScriptedBackend;
pub use backend::{AgentBackend, AgentToken};
pub use cache_budget::{EpisodeTokens, automatic_cache_bytes, cache_budget};
pub use card::{MODEL_CARD_FILE, ModelCard};
pub use driver::{rollout, rollout_observed};
pub use engine_settings::engine_settings;
pub use episode::{Episode, Outcome, WorkerEnd, WorkerRecord};
pub use error::{Error, Result};
pub use graded::{AttemptCounts, GradedEpisode};
pub use observer::{Agent, AgentEvent, RolloutEvent, RolloutObserver, RolloutProgress};
pub use query::{Prompt, Query};
pub use sampler::EpisodeSampler;
pub use seeds::mix_seed;
pub use settings::RolloutSettings;
pub use training::{
    AdvantageRule, EpisodeMetrics, EpisodeSummary, ORGANIZER_ROWS, OverlongRule, RewardedEpisode,
    WORKER_ROWS, assign_advantages, episode_records, reward_episode, rows_to_train, training_rows,
};
