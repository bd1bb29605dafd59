//! Sampling episodes from a model, for training and for evaluation.

use asyncthink_data::{PromptTemplates, Tokenizer};
use asyncthink_engine::{BatchedEngine, EngineConfig, Temperature};
use asyncthink_model::Decoder;
use asyncthink_rollout::{Episode, Query, RolloutProgress, RolloutSettings, rollout};
use asyncthink_tasks::Problem;
use tch::Device;

use crate::card::ModelCard;
use crate::error::Result;

/// Agents decoding at a time on a CPU: beyond this a step takes as much longer as it does more, and the cache grows.
const MAX_AGENTS_CPU: usize = 256;

/// Agents decoding at a time on a GPU, whose steps are bound by memory traffic for the weights.
const MAX_AGENTS_GPU: usize = 1024;

/// How a model is prompted and driven.
#[derive(Clone, Debug)]
pub struct EpisodeSampler {
    templates: PromptTemplates,
    settings: RolloutSettings,
    temperature: Temperature,
}

impl EpisodeSampler {
    /// A sampler by the rules of `card`.
    ///
    /// # Errors
    /// When a template lacks its placeholder or a number is out of range.
    pub fn new(card: &ModelCard, temperature: f64) -> Result<Self> {
        Ok(Self {
            templates: card.templates()?,
            settings: card.rollout_settings(),
            temperature: Temperature::new(temperature)?,
        })
    }

    /// One episode's query: sample `sample_index` of `problem`.
    pub fn query(&self, problem: &Problem, prompt_index: usize, sample_index: usize, seed: u64) -> Query {
        Query { prompt_index, sample_index, text: self.templates.query(&problem.fields()), seed }
    }

    /// Runs the episodes of `queries`, in their order. `progress` may stop it by returning `false`; episodes that have
    /// not ended are then missing.
    ///
    /// # Errors
    /// When the model fails or a prompt does not fit.
    pub fn run(
        &self,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        queries: &[Query],
        progress: &mut dyn FnMut(RolloutProgress) -> bool,
    ) -> Result<Vec<Episode>> {
        let per_episode = self.settings.protocol.capacity.get() as usize;
        let limit = if decoder.device() == Device::Cpu { MAX_AGENTS_CPU } else { MAX_AGENTS_GPU };
        let max_agents = (queries.len() * per_episode).min(limit.max(per_episode));
        let config = EngineConfig { max_agents, temperature: self.temperature };
        let mut engine = BatchedEngine::new(decoder, config)?;
        Ok(rollout(&mut engine, tokenizer, &self.templates, &self.settings, queries, progress)?)
    }
}
