//! One step: sampling, grading, updating.

use std::sync::Arc;
use std::time::Instant;

use asyncthink_algorithms::{AdvantageEstimator, LambdaSchedule, LearningRate, RewardRule};
use asyncthink_checkpoint::RunLayout;
use asyncthink_data::{DataOrder, Stream, Tokenizer, TrainingRow, derive_seed};
use asyncthink_distributed::{AdamW, Ranks, count_of};
use asyncthink_gradient::{
    BatchMetrics, BatchSettings, Mismatch, PackedBatch, Weights, mismatch_of_skipped_rows,
};
use asyncthink_model::Parallelism;
use asyncthink_recipe::{GrpoSection, MemoryBudget, Stage};
use asyncthink_rollout::{
    Episode, EpisodeMetrics, EpisodeSampler, EpisodeSummary, Query, RewardedEpisode,
    assign_advantages, episode_records, reward_episode, training_rows,
};
use asyncthink_tasks::Problem;
use asyncthink_torch::empty_cache;

use super::line::{GrpoLine, UpdateMetrics};
use crate::episode_files;
use crate::error::{Error, Result};
use crate::observer::{Observer, StopFlag};
use crate::run::{MemoryPlan, check_finite, exchanged_bytes};
use crate::settings::{GrpoSettings, RunSettings};
use asyncthink_gradient::PolicyModel;
use asyncthink_metrics::{Phase, StepClock};

/// Everything that stays the same from step to step.
pub(super) struct Trainer<'a> {
    section: &'a GrpoSection,
    seed: u64,
    problems: &'a [Problem],
    order: DataOrder,
    sampler: EpisodeSampler,
    reference: Option<Weights>,
    given_reward: Option<fn(&Episode) -> f64>,
    advantage: Arc<dyn AdvantageEstimator>,
    batch: BatchSettings,
    learning_rate: LearningRate,
    lambda: LambdaSchedule,
    layout: RunLayout,
    ranks: Arc<Ranks>,
    /// Whether the engine gives its memory back before weights are updated.
    cache_takes_turns: bool,
}

impl<'a> Trainer<'a> {
    pub(super) fn new(
        settings: &'a GrpoSettings,
        run: &RunSettings,
        memory: &MemoryPlan,
        problems: &'a [Problem],
        reference: Option<Weights>,
        parallelism: Parallelism,
        ranks: Arc<Ranks>,
    ) -> Result<Self> {
        let section = &settings.section;
        let mut engine = settings.engine.clone();
        if let (true, Some(bytes)) = (settings.is_cache_automatic(), memory.cache_bytes) {
            engine.cache_memory = Some(MemoryBudget::Bytes(bytes));
        }
        Ok(Self {
            section,
            seed: run.seed,
            problems,
            order: DataOrder::new(run.seed, problems.len())
                .ok_or_else(|| Error::stage("ordering the problems", "there are none"))?,
            sampler: EpisodeSampler::new(&run.card, section.temperature)?
                .with_engine(engine)
                .with_precision(run.policy.precision),
            reference,
            given_reward: settings.given_reward,
            advantage: Arc::clone(&settings.advantage),
            batch: BatchSettings {
                loss: Arc::clone(&settings.loss),
                aggregation: settings.aggregation,
                old_policy: section.logp_old,
                measures_policy: true,
                temperature: section.temperature,
                micro_batch_tokens: memory.chosen.tokens(),
                activation_checkpointing: memory.chosen.activation_checkpointing,
                parallelism,
            },
            learning_rate: LearningRate::of(&section.optimizer, run.num_steps),
            lambda: LambdaSchedule::of(&section.reward, run.num_steps),
            layout: run.layout.clone(),
            ranks,
            cache_takes_turns: memory.cache_takes_turns,
        })
    }

    /// Weight of the concurrency reward at the last step of the run.
    pub(super) fn final_lambda(&self) -> f64 {
        self.lambda.at_end()
    }

    /// One step after `done` finished ones; `None` if the stop flag was raised before the weights moved.
    pub(super) fn step(
        &mut self,
        done: u64,
        clock: StepClock,
        model: &mut PolicyModel,
        optimizer: &mut AdamW,
        observer: &mut dyn Observer,
        stop: &StopFlag,
    ) -> Result<Option<GrpoLine>> {
        let mut context = StepContext {
            step: done + 1,
            observer,
            stop,
            clock,
        };
        let identity = format!("step {}: problems {:?}", done + 1, self.prompts(done));
        self.ranks.check_same("the prompts of a step", &identity)?;
        let queries = self.queries(done, &model.tokenizer)?;
        let started = Instant::now();
        model.begin_sampling()?;
        context.clock.book(Phase::Rollout, started);
        let Some(episodes) = self.sample(&queries, model, &mut context)? else {
            return Ok(None);
        };
        let lambda = self.lambda.at(done);
        let started = Instant::now();
        let mut episodes = self.grade(episodes, lambda, &model.tokenizer);
        // Groups are whole on every rank.
        let constant_groups =
            assign_advantages(&mut episodes, self.section.group_size, &*self.advantage);
        let rows = training_rows(&episodes)?;
        let mut sums = [constant_groups as f64, rows.len() as f64];
        self.ranks.sum(&mut sums)?;
        let [constant_groups, num_rows] = sums.map(count_of);
        context.clock.book(Phase::Reward, started);
        let skipped = self.skipped(&rows, model, &mut context)?;
        model.end_sampling();
        if self.cache_takes_turns {
            self.sampler.release_memory();
            empty_cache(model.device())?;
        }
        let learning_rate = self.learning_rate.at(done);
        let update = self.update(
            &rows,
            skipped,
            learning_rate,
            model,
            optimizer,
            &mut context,
        )?;
        let Some(update) = update else {
            return Ok(None);
        };
        let update = UpdateMetrics { num_rows, ..update };
        let started = Instant::now();
        let dump_every = self.section.dump_episodes_every_steps;
        if dump_every.is_some_and(|every| context.step.is_multiple_of(every as u64)) {
            let records = episode_records(context.step, &episodes, &model.tokenizer);
            let path = self.layout.episodes(Stage::Grpo, context.step);
            self.set_phase(context.step, "writing episodes");
            episode_files::write(&path, records, &self.ranks)?;
        }
        context.clock.book(Phase::Save, started);
        let metrics = self.episode_metrics(&episodes)?;
        let trained = update.num_tokens * self.section.num_updates_per_rollout;
        let tokens = [
            (Phase::Rollout, metrics.decoded_tokens),
            (Phase::Train, trained),
        ];
        let timing = context.clock.timing(&tokens, &exchanged_bytes(&self.ranks));
        Ok(Some(GrpoLine {
            step: context.step,
            epoch: self.order.epoch(self.position(done)),
            episodes: metrics,
            constant_groups,
            lambda,
            learning_rate,
            update,
            timing,
        }))
    }

    /// Metrics of the episodes of all ranks; a collective.
    fn episode_metrics(&self, episodes: &[RewardedEpisode]) -> Result<EpisodeMetrics> {
        let mut summaries = EpisodeSummary::of_all(episodes);
        if !self.ranks.is_alone() {
            let exchanging = |error| Error::stage("exchanging the metrics of episodes", error);
            let bytes = serde_json::to_vec(&summaries).map_err(exchanging)?;
            summaries.clear();
            for bytes in self.ranks.gather_bytes(&bytes)? {
                let of_rank: Vec<EpisodeSummary> =
                    serde_json::from_slice(&bytes).map_err(exchanging)?;
                summaries.extend(of_rank);
            }
        }
        EpisodeMetrics::of_summaries(&summaries)
            .ok_or_else(|| Error::stage("summarising a step", "no episodes"))
    }

    fn set_phase(&self, step: u64, what: &str) {
        self.ranks.set_step_phase(Stage::Grpo.name(), step, what);
    }

    /// Position of a step's first prompt in the endless sequence of prompts.
    fn position(&self, done: u64) -> u64 {
        done * self.section.prompts_per_step as u64
    }

    /// The problems of a step, of all ranks.
    fn prompts(&mut self, done: u64) -> Vec<usize> {
        let first = self.position(done);
        (0..self.section.prompts_per_step as u64)
            .map(|slot| self.order.item(first + slot))
            .collect()
    }

    /// This rank's share, group after group, one query per episode.
    fn queries(&mut self, done: u64, tokenizer: &Tokenizer) -> Result<Vec<Query>> {
        let group_size = self.section.group_size;
        let share = self.ranks.share_of(self.section.prompts_per_step);
        let mut queries = Vec::with_capacity(share.len() * group_size);
        for slot in share {
            let prompt_index = self.order.item(self.position(done) + slot as u64);
            let problem = &self.problems[prompt_index];
            let prompt = self
                .sampler
                .problem_prompt(tokenizer, problem, prompt_index)?;
            for sample_index in 0..group_size {
                // By slot, not by prompt: a step that spans two epochs may hold a prompt twice.
                let episode = (slot * group_size + sample_index) as u64;
                let seed = derive_seed(self.seed, Stream::Rollout, done, episode);
                queries.push(Query {
                    prompt: Arc::clone(&prompt),
                    sample_index,
                    seed,
                });
            }
        }
        Ok(queries)
    }

    fn sample(
        &self,
        queries: &[Query],
        model: &PolicyModel,
        context: &mut StepContext<'_>,
    ) -> Result<Option<Vec<Episode>>> {
        let started = Instant::now();
        let StepContext {
            step,
            observer,
            stop,
            ..
        } = context;
        self.set_phase(*step, "sampling");
        let episodes = self
            .sampler
            .run(
                model.sampler()?,
                &model.tokenizer,
                queries,
                &mut |progress| {
                    observer.phase(
                        Phase::Rollout,
                        progress.finished_episodes as u64,
                        progress.total_episodes as u64,
                    );
                    stop.requested().is_none()
                },
            )
            .map_err(|error| Error::from(error).at_step(*step))?;
        context.clock.book(Phase::Rollout, started);
        let is_cut_short = episodes.len() < queries.len();
        let mut num_cut_short = [f64::from(u8::from(is_cut_short))];
        self.ranks.sum(&mut num_cut_short)?;
        Ok((num_cut_short[0] == 0.0).then_some(episodes))
    }

    fn grade(
        &self,
        episodes: Vec<Episode>,
        lambda: f64,
        tokenizer: &Tokenizer,
    ) -> Vec<RewardedEpisode> {
        let reward = &self.section.reward;
        let rule = RewardRule::of(reward, lambda);
        episodes
            .into_iter()
            .map(|episode| {
                let problem = &self.problems[episode.prompt_index];
                let given = self.given_reward.map(|reward_of| reward_of(&episode));
                let mut rewarded =
                    reward_episode(episode, problem, tokenizer, &rule, reward.count_unjoined);
                if let Some(given) = given {
                    rewarded.reward.total = given;
                }
                rewarded
            })
            .collect()
    }

    /// Compares trainer and sampler on the rows that no gradient is computed for, if the recipe bounds the difference.
    fn skipped(
        &self,
        rows: &[TrainingRow],
        model: &PolicyModel,
        context: &mut StepContext<'_>,
    ) -> Result<Option<Mismatch>> {
        if self.section.max_logprob_mismatch.is_none() {
            return Ok(None);
        }
        let started = Instant::now();
        let own = mismatch_of_skipped_rows(model.scorer()?, rows, &self.batch)?;
        let all = own.over_ranks(&self.ranks)?;
        context.clock.book(Phase::Score, started);
        Ok(Some(all))
    }

    /// All updates on one rollout; `None` if the stop flag was raised before the weights moved.
    fn update(
        &self,
        rows: &[TrainingRow],
        skipped: Option<Mismatch>,
        learning_rate: f64,
        model: &PolicyModel,
        optimizer: &mut AdamW,
        context: &mut StepContext<'_>,
    ) -> Result<Option<UpdateMetrics>> {
        let num_updates = self.section.num_updates_per_rollout;
        let mut means = UpdateMetrics::default();
        let started = Instant::now();
        self.set_phase(context.step, "computing the gradient");
        let mut batch = PackedBatch::new(model.weights(), rows, &self.batch, &self.ranks)?;
        context.clock.book(Phase::Train, started);
        for index in 0..num_updates {
            optimizer.zero_grad();
            let started = Instant::now();
            let StepContext {
                step,
                observer,
                stop,
                ..
            } = context;
            self.set_phase(*step, "computing the gradient");
            let metrics = batch.accumulate_gradient(
                model.weights(),
                self.reference.as_ref(),
                optimizer,
                &mut |done, total| {
                    observer.phase(Phase::Train, done as u64, total as u64);
                    index > 0 || stop.requested().is_none()
                },
            )?;
            let step = *step;
            context.clock.book(Phase::Train, started);
            let Some(mut metrics) = metrics else {
                return Ok(None);
            };
            if self.reference.is_some() {
                context
                    .clock
                    .add(Phase::Reference, metrics.reference_seconds);
                context.clock.add(Phase::Train, -metrics.reference_seconds);
            }
            check_finite(step, "the loss", metrics.loss)?;
            if index == 0 {
                if let Some(skipped) = &skipped {
                    metrics.include_mismatch(skipped);
                }
                self.check_mismatch(step, &metrics)?;
                means.start(&metrics);
            }
            let started = Instant::now();
            self.set_phase(step, "updating the weights");
            let grad_norm = optimizer.clip_grad_norm(self.section.optimizer.max_grad_norm)?;
            check_finite(step, "the gradient norm", grad_norm)?;
            optimizer.step(learning_rate)?;
            context.clock.book(Phase::Optimizer, started);
            means.add(
                &metrics,
                self.reference.is_some(),
                grad_norm,
                num_updates as f64,
            );
        }
        Ok(Some(means))
    }

    fn check_mismatch(&self, step: u64, metrics: &BatchMetrics) -> Result<()> {
        check_finite(
            step,
            "the log-probability of a token",
            metrics.mismatch_max_nats,
        )?;
        match self.section.max_logprob_mismatch {
            Some(bound_nats) if metrics.mismatch_max_nats > bound_nats => {
                Err(Error::LogprobMismatch {
                    step,
                    max_nats: metrics.mismatch_max_nats,
                    bound_nats,
                })
            }
            _ => Ok(()),
        }
    }
}

/// State that the parts of one step share.
struct StepContext<'a> {
    /// Counted from 1.
    step: u64,
    observer: &'a mut dyn Observer,
    stop: &'a StopFlag,
    clock: StepClock,
}
