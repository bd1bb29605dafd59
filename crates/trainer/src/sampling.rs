//! Sampling episodes from a model, for training and for evaluation.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use asyncthink_data::{PromptTemplates, TokenId, Tokenizer};
use asyncthink_engine::{BatchedEngine, EngineConfig, Temperature};
use asyncthink_model::Decoder;
use asyncthink_rollout::{
    Episode, Query, RolloutObserver, RolloutProgress, RolloutSettings, rollout, rollout_observed,
};
use asyncthink_tasks::Problem;
use asyncthink_torch::num_workers;
use tch::Device;

use crate::card::ModelCard;
use crate::error::{Error, Result};

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
    max_agents: Option<usize>,
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
            max_agents: None,
        })
    }

    /// Bounds the agents that decode at a time, per thread; `None` takes the default for the device.
    #[must_use]
    pub fn with_max_agents(mut self, max_agents: Option<usize>) -> Self {
        self.max_agents = max_agents;
        self
    }

    /// One episode's query: sample `sample_index` of `problem`.
    pub fn query(
        &self,
        problem: &Problem,
        prompt_index: usize,
        sample_index: usize,
        seed: u64,
    ) -> Query {
        Query {
            prompt_index,
            sample_index,
            text: self.templates.query(&problem.fields()),
            seed,
        }
    }

    /// What the organizer's context begins with, for a query.
    ///
    /// # Errors
    /// When the chat template refuses it, or it cannot be tokenised.
    pub fn prompt(&self, tokenizer: &Tokenizer, query: &str) -> Result<Vec<TokenId>> {
        Ok(self.templates.organizer_ids(tokenizer, query)?)
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
        let mut engine = self.engine(decoder, 1)?;
        let episodes = rollout_observed(
            &mut engine,
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
    /// With several workers ([`asyncthink_torch::num_workers`]) each runs an engine of its own over an equal part of the
    /// queries.
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
        let part_len = queries.len().div_ceil(num_workers()).max(1);
        let mut parts = queries.chunks(part_len);
        let own = parts.next().unwrap_or_default();
        let board = ProgressBoard::new(queries.len());
        std::thread::scope(|scope| {
            let others: Vec<_> = parts
                .map(|part| {
                    let replica = decoder.replica()?;
                    let board = &board;
                    Ok(scope.spawn(move || {
                        let result =
                            self.run_part(&replica, tokenizer, part, &mut board.reporter());
                        board.stop_on_error(result)
                    }))
                })
                .collect::<Result<_>>()?;
            let mut report = board.reporter();
            let result = self.run_part(decoder, tokenizer, own, &mut |state| {
                let goes_on = report(state);
                board.ask(progress) && goes_on
            });
            let mut episodes = board.stop_on_error(result);
            while others.iter().any(|other| !other.is_finished()) {
                board.ask(progress);
                std::thread::sleep(POLL_INTERVAL);
            }
            for other in others {
                let part = other
                    .join()
                    .map_err(|_| Error::stage("sampling episodes", "a thread panicked"))?;
                if let Ok(episodes) = &mut episodes {
                    episodes.extend(part?);
                }
            }
            // The other threads' last episodes have not been shown yet.
            board.ask(progress);
            episodes
        })
    }

    fn run_part(
        &self,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        queries: &[Query],
        progress: &mut dyn FnMut(RolloutProgress) -> bool,
    ) -> Result<Vec<Episode>> {
        let mut engine = self.engine(decoder, queries.len())?;
        Ok(rollout(
            &mut engine,
            tokenizer,
            &self.templates,
            &self.settings,
            queries,
            progress,
        )?)
    }

    /// An engine with room for so many episodes, or for as many as may decode at a time.
    fn engine<'a>(&self, decoder: &'a Decoder, num_episodes: usize) -> Result<BatchedEngine<'a>> {
        let per_episode = self.settings.protocol.capacity.get() as usize;
        let limit = self
            .max_agents
            .unwrap_or(if decoder.device() == Device::Cpu {
                MAX_AGENTS_CPU
            } else {
                MAX_AGENTS_GPU
            });
        let max_agents = (num_episodes * per_episode).clamp(per_episode, limit.max(per_episode));
        let config = EngineConfig {
            max_agents,
            temperature: self.temperature,
        };
        Ok(BatchedEngine::new(decoder, config)?)
    }
}

/// How often progress is asked for while only other threads still work.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Progress of all parts together, and whether they are to stop.
struct ProgressBoard {
    total_episodes: usize,
    finished_episodes: AtomicUsize,
    decoded_tokens: AtomicU64,
    num_steps: AtomicU64,
    is_stopped: AtomicBool,
}

impl ProgressBoard {
    fn new(total_episodes: usize) -> Self {
        Self {
            total_episodes,
            finished_episodes: AtomicUsize::new(0),
            decoded_tokens: AtomicU64::new(0),
            num_steps: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// Stops all parts where one has failed: what they sample is lost.
    fn stop_on_error<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.is_stopped.store(true, Ordering::Relaxed);
        }
        result
    }

    /// What one part calls after each of its steps.
    fn reporter(&self) -> impl FnMut(RolloutProgress) -> bool {
        let mut last = RolloutProgress::default();
        move |state| {
            let finished = state.finished_episodes - last.finished_episodes;
            self.finished_episodes
                .fetch_add(finished, Ordering::Relaxed);
            self.decoded_tokens.fetch_add(
                state.decoded_tokens - last.decoded_tokens,
                Ordering::Relaxed,
            );
            self.num_steps.fetch_max(state.num_steps, Ordering::Relaxed);
            last = state;
            !self.is_stopped.load(Ordering::Relaxed)
        }
    }

    /// Shows the state to the caller, who may stop all parts.
    fn ask(&self, progress: &mut dyn FnMut(RolloutProgress) -> bool) -> bool {
        let goes_on = progress(RolloutProgress {
            finished_episodes: self.finished_episodes.load(Ordering::Relaxed),
            total_episodes: self.total_episodes,
            decoded_tokens: self.decoded_tokens.load(Ordering::Relaxed),
            num_steps: self.num_steps.load(Ordering::Relaxed),
        });
        if !goes_on {
            self.is_stopped.store(true, Ordering::Relaxed);
        }
        goes_on
    }
}
