//! Sampling episodes from a model, for training and for evaluation.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use asyncthink_data::{PromptTemplates, Tokenizer};
use asyncthink_engine::{BatchedEngine, EngineStats, SamplingParams, Temperature};
use asyncthink_model::{Decoder, Precision};
use asyncthink_recipe::EngineSection;
use asyncthink_tasks::Problem;
use asyncthink_torch::{num_threads, set_operation_threads, thread_budget};

use crate::backend::engine::EngineBackend;
use crate::cache_budget::{cache_budget, check_holds_one_episode};
use crate::card::ModelCard;
use crate::driver::{rollout_observed, run_episodes};
use crate::engine_settings::engine_settings;
use crate::episode::Episode;
use crate::error::{Error, Result};
use crate::expected::ExpectedTokens;
use crate::observer::{ProgressOnly, RolloutObserver, RolloutProgress};
use crate::query::{Prompt, Query};
use crate::settings::RolloutSettings;

/// Sampler of episodes. Keeps its engine across rollouts, and all episodes of a rollout share it.
#[derive(Debug)]
pub struct EpisodeSampler {
    templates: PromptTemplates,
    settings: RolloutSettings,
    precision: Precision,
    section: EngineSection,
    cache_budget: OnceLock<Result<Option<u64>, String>>,
    engine: Mutex<Option<BatchedEngine>>,
    expected: Mutex<ExpectedTokens>,
}

impl EpisodeSampler {
    /// A sampler by the rules of `card`, in f32.
    ///
    /// # Errors
    /// When a template lacks its placeholder or a number is out of range.
    pub fn new(card: &ModelCard, temperature: f64) -> Result<Self> {
        let sampling = SamplingParams::new(Temperature::new(temperature)?);
        Ok(Self {
            templates: card.templates()?,
            settings: RolloutSettings {
                sampling,
                ..card.rollout_settings()
            },
            precision: Precision::F32,
            section: EngineSection::default(),
            cache_budget: OnceLock::new(),
            engine: Mutex::default(),
            expected: Mutex::default(),
        })
    }

    /// Samples within the limits of a recipe's `[engine]`.
    #[must_use]
    pub fn with_engine(mut self, section: EngineSection) -> Self {
        self.section = section;
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

    /// Work that the engine has done in all runs; `None` before the first.
    pub fn engine_stats(&self) -> Option<EngineStats> {
        lock(&self.engine).as_ref().map(BatchedEngine::stats)
    }

    /// Gives back the memory of the engine and its KV cache; the next run makes a new one.
    pub fn release_memory(&self) {
        *lock(&self.engine) = None;
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
        let queries = std::slice::from_ref(query);
        let mut engine = self.engine_for(decoder, queries)?;
        let episodes = rollout_observed(
            &mut EngineBackend::new(&mut engine, decoder),
            tokenizer,
            &self.templates,
            &self.settings,
            queries,
            observer,
        )?;
        Ok(episodes.into_iter().next())
    }

    /// Runs the episodes of `queries`, in their order. `progress` may stop it by returning `false`; episodes that have
    /// not ended are then missing.
    ///
    /// # Errors
    /// When the model fails, a prompt does not fit, or the KV cache cannot hold one episode.
    pub fn run(
        &self,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        queries: &[Query],
        progress: &mut dyn FnMut(RolloutProgress) -> bool,
    ) -> Result<Vec<Episode>> {
        self.run_by(&self.settings, decoder, tokenizer, queries, progress)
    }

    /// As [`Self::run`], at another temperature over the same engine.
    ///
    /// # Errors
    /// As [`Self::run`], and when the temperature is out of range.
    pub fn run_at(
        &self,
        temperature: f64,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        queries: &[Query],
        progress: &mut dyn FnMut(RolloutProgress) -> bool,
    ) -> Result<Vec<Episode>> {
        let settings = RolloutSettings {
            sampling: SamplingParams::new(Temperature::new(temperature)?),
            ..self.settings.clone()
        };
        self.run_by(&settings, decoder, tokenizer, queries, progress)
    }

    fn run_by(
        &self,
        settings: &RolloutSettings,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        queries: &[Query],
        progress: &mut dyn FnMut(RolloutProgress) -> bool,
    ) -> Result<Vec<Episode>> {
        let mut engine = self.engine_for(decoder, queries)?;
        let mut expected = *lock(&self.expected);
        let _threads = AllThreads::begin();
        let episodes = run_episodes(
            &mut EngineBackend::new(&mut engine, decoder),
            (tokenizer, &self.templates, settings),
            queries,
            &mut ProgressOnly(progress),
            &mut expected,
        )?;
        *lock(&self.expected) = expected;
        *lock(&self.engine) = Some(engine);
        Ok(episodes)
    }

    /// The engine of an earlier run, or a new one.
    fn engine_for(&self, decoder: &Decoder, queries: &[Query]) -> Result<BatchedEngine> {
        // Told once: what is free changes while the cache itself grows.
        let budget = self
            .cache_budget
            .get_or_init(|| cache_budget(self.section.cache_memory, decoder.device()))
            .clone()
            .map_err(Error::CacheMemory)?;
        let settings = engine_settings(
            &self.section,
            decoder.device(),
            self.precision,
            self.settings.protocol.capacity,
            budget,
        );
        let kept = lock(&self.engine).take();
        let engine = match kept.filter(|engine| engine.fits(decoder, settings)) {
            Some(mut engine) => {
                engine.weights_changed();
                engine
            }
            None => BatchedEngine::new(decoder.config(), decoder.device(), settings)?,
        };
        check_holds_one_episode(&engine, budget, &self.settings, queries)?;
        Ok(engine)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets every operation use all threads of the process, until it is dropped: one engine samples for all of them.
struct AllThreads {
    before: usize,
}

impl AllThreads {
    fn begin() -> Self {
        let before = num_threads();
        if let Some(threads) = thread_budget() {
            set_operation_threads(threads);
        }
        Self { before }
    }
}

impl Drop for AllThreads {
    fn drop(&mut self) {
        if num_threads() != self.before {
            set_operation_threads(self.before);
        }
    }
}
