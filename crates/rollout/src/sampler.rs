//! Sampling episodes from a model, for training and for evaluation.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use asyncthink_data::{PromptTemplates, Tokenizer};
use asyncthink_engine::{BatchedEngine, EngineSettings, Temperature};
use asyncthink_model::{Decoder, Parallelism, Precision, run_workers};
use asyncthink_recipe::MemoryBudget;
use asyncthink_tasks::Problem;
use asyncthink_torch::free_bytes;
use tch::Device;

use crate::backend::engine::EngineBackend;
use crate::card::ModelCard;
use crate::driver::{rollout, rollout_observed};
use crate::episode::Episode;
use crate::error::{Error, Result};
use crate::observer::{RolloutObserver, RolloutProgress};
use crate::progress::ProgressBoard;
use crate::query::{Prompt, Query};
use crate::settings::RolloutSettings;

/// Agents decoding at a time on a CPU: beyond this a step takes as much longer as it does more, and the cache grows.
const MAX_AGENTS_CPU: usize = 256;

/// Agents decoding at a time on a GPU, whose steps are bound by memory traffic for the weights.
const MAX_AGENTS_GPU: usize = 1024;

/// Sampler of episodes. Keeps its engines, one per worker thread, across rollouts.
#[derive(Debug)]
pub struct EpisodeSampler {
    templates: PromptTemplates,
    settings: RolloutSettings,
    temperature: Temperature,
    precision: Precision,
    max_agents: Option<usize>,
    cache_memory: MemoryBudget,
    cache_limit_bytes: OnceLock<Result<Option<u64>, String>>,
    parallelism: Parallelism,
    engines: Mutex<Vec<BatchedEngine>>,
}

impl EpisodeSampler {
    /// A sampler by the rules of `card`, in one worker and in f32.
    ///
    /// # Errors
    /// When a template lacks its placeholder or a number is out of range.
    pub fn new(card: &ModelCard, temperature: f64) -> Result<Self> {
        Ok(Self {
            templates: card.templates()?,
            settings: card.rollout_settings(),
            temperature: Temperature::new(temperature)?,
            precision: Precision::F32,
            max_agents: None,
            cache_memory: MemoryBudget::Auto,
            cache_limit_bytes: OnceLock::new(),
            parallelism: Parallelism::SINGLE,
            engines: Mutex::default(),
        })
    }

    /// Bounds the agents that decode at a time, per worker; `None` takes the default for the device.
    #[must_use]
    pub fn with_max_agents(mut self, max_agents: Option<usize>) -> Self {
        self.max_agents = max_agents;
        self
    }

    /// Bounds the memory of the KV caches of all workers together; `None` for no limit.
    #[must_use]
    pub fn with_cache_memory(mut self, budget: Option<MemoryBudget>) -> Self {
        self.cache_memory = budget.unwrap_or_default();
        self
    }

    /// Samples with as many workers as `parallelism` says.
    #[must_use]
    pub fn with_parallelism(mut self, parallelism: Parallelism) -> Self {
        self.parallelism = parallelism;
        self
    }

    /// Samples from a model of other number types.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The rules that episodes obey.
    pub fn settings(&self) -> &RolloutSettings {
        &self.settings
    }

    /// The prompt of the problem at `index` of its data set, for all episodes that begin with it.
    ///
    /// # Errors
    /// When the chat template refuses it, or it cannot be tokenised.
    pub fn problem_prompt(
        &self,
        tokenizer: &Tokenizer,
        problem: &Problem,
        index: usize,
    ) -> Result<Arc<Prompt>> {
        let query = self.templates.query(&problem.fields());
        Ok(Arc::new(self.prompt(tokenizer, index, query)?))
    }

    /// The prompt of a query.
    ///
    /// # Errors
    /// When the chat template refuses it, or it cannot be tokenised.
    pub fn prompt(&self, tokenizer: &Tokenizer, index: usize, query: String) -> Result<Prompt> {
        Prompt::new(tokenizer, &self.templates, index, query)
    }

    /// Runs one episode on this thread and tells `observer` what happens in it; `None` where it stopped the episode.
    ///
    /// # Errors
    /// When the model fails or the prompt does not fit.
    pub fn play(
        &self,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        query: &Query,
        observer: &mut dyn RolloutObserver,
    ) -> Result<Option<Episode>> {
        let mut engine = self.engine_for(decoder, 1, &mut Vec::new())?;
        let episodes = rollout_observed(
            &mut EngineBackend::new(&mut engine, decoder),
            tokenizer,
            &self.templates,
            &self.settings,
            std::slice::from_ref(query),
            observer,
        )?;
        Ok(episodes.into_iter().next())
    }

    /// Runs the episodes of `queries`, in their order. `progress` may stop it by returning `false`; episodes that have
    /// not ended are then missing.
    ///
    /// With several workers each runs an engine of its own over an equal part of the queries.
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
        let part_len = queries
            .len()
            .div_ceil(self.parallelism.num_workers())
            .max(1);
        let parts: Vec<&[Query]> = queries.chunks(part_len).collect();
        let mut kept = self.take_engines();
        let own_part = parts.first().copied().unwrap_or_default();
        let mut own_engine = self.engine_for(decoder, own_part.len(), &mut kept)?;
        let others = parts
            .iter()
            .skip(1)
            .map(|part| {
                let engine = self.engine_for(decoder, part.len(), &mut kept)?;
                Ok((decoder.replica()?, engine))
            })
            .collect::<Result<Vec<_>>>()?;
        // Engines that no part has a use for free their memory before the others grow.
        drop(kept);
        let board = ProgressBoard::new(queries.len(), others.len());
        let (own, others) = run_workers(
            "sampling episodes",
            others,
            || {
                let mut report = board.reporter();
                let result = self.run_part(
                    &mut EngineBackend::new(&mut own_engine, decoder),
                    tokenizer,
                    own_part,
                    &mut |state| {
                        let goes_on = report(state);
                        board.ask(progress) && goes_on
                    },
                );
                let result = board.stop_on_error(result);
                board.wait_for_others(progress);
                result
            },
            |worker, (replica, mut engine)| {
                let _running = board.running_part();
                let result = self.run_part(
                    &mut EngineBackend::new(&mut engine, &replica),
                    tokenizer,
                    parts[worker],
                    &mut board.reporter(),
                );
                (board.stop_on_error(result), engine)
            },
        )?;
        let mut episodes = own?;
        let mut engines = vec![own_engine];
        for (part, engine) in others {
            episodes.extend(part?);
            engines.push(engine);
        }
        *self.lock_engines() = engines;
        Ok(episodes)
    }

    fn run_part(
        &self,
        backend: &mut EngineBackend<'_>,
        tokenizer: &Tokenizer,
        queries: &[Query],
        progress: &mut dyn FnMut(RolloutProgress) -> bool,
    ) -> Result<Vec<Episode>> {
        rollout(
            backend,
            tokenizer,
            &self.templates,
            &self.settings,
            queries,
            progress,
        )
    }

    fn lock_engines(&self) -> std::sync::MutexGuard<'_, Vec<BatchedEngine>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_engines(&self) -> Vec<BatchedEngine> {
        std::mem::take(&mut *self.lock_engines())
    }

    /// An engine with room for so many episodes, or for as many as may decode at a time: one of an earlier run, or a new one.
    fn engine_for(
        &self,
        decoder: &Decoder,
        num_episodes: usize,
        kept: &mut Vec<BatchedEngine>,
    ) -> Result<BatchedEngine> {
        let per_episode = self.settings.protocol.capacity.get() as usize;
        let limit = self
            .max_agents
            .unwrap_or(if decoder.device() == Device::Cpu {
                MAX_AGENTS_CPU
            } else {
                MAX_AGENTS_GPU
            });
        // Told once: what is free changes while the cache itself grows.
        let limit_bytes = self.cache_limit_bytes.get_or_init(|| {
            let free = free_bytes(decoder.device());
            self.cache_memory.limit_bytes(free)
        });
        let limit_bytes = limit_bytes.clone().map_err(Error::CacheMemory)?;
        let settings = EngineSettings {
            max_cache_bytes: limit_bytes.map(|bytes| bytes / self.parallelism.num_workers() as u64),
            max_agents: (num_episodes * per_episode).clamp(per_episode, limit.max(per_episode)),
            temperature: self.temperature,
            precision: self.precision,
        };
        match kept.iter().position(|one| one.fits(decoder, settings)) {
            Some(index) => {
                let mut engine = kept.swap_remove(index);
                engine.weights_changed();
                Ok(engine)
            }
            None => Ok(BatchedEngine::new(
                decoder.config(),
                decoder.device(),
                settings,
            )?),
        }
    }
}
