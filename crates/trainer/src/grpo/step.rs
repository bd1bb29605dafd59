//! One step: sampling, grading, updating.

use std::sync::Arc;
use std::time::Instant;

use asyncthink_algorithms::{AdvantageEstimator, LambdaSchedule, LearningRate};
use asyncthink_checkpoint::RunLayout;
use asyncthink_data::{DataOrder, TrainingRow};
use asyncthink_distributed::{AdamW, Ranks, count_of};
use asyncthink_gradient::{BatchSettings, PolicyModel, Weights};
use asyncthink_metrics::{Phase, StepClock};
use asyncthink_model::Parallelism;
use asyncthink_recipe::{GrpoSection, MemoryBudget, Stage};
use asyncthink_rollout::{
    Episode, EpisodeMetrics, EpisodeSampler, EpisodeSummary, OverlongRule, RewardedEpisode,
    episode_records, rows_to_train,
};
use asyncthink_tasks::Problem;
use asyncthink_torch::empty_cache;

use super::line::{GrpoLine, UpdateMetrics};
use super::sampled::Sampled;
use super::step_context::StepContext;
use crate::episode_files;
use crate::error::{Error, Result};
use crate::observer::{Observer, StopFlag};
use crate::run::{MemoryPlan, exchanged_bytes};
use crate::settings::{GrpoSettings, RunSettings};

/// Everything that stays the same from step to step.
pub(super) struct Trainer<'a> {
    pub(super) section: &'a GrpoSection,
    pub(super) seed: u64,
    pub(super) problems: &'a [Problem],
    pub(super) order: DataOrder,
    pub(super) sampler: EpisodeSampler,
    pub(super) overlong: Option<OverlongRule>,
    /// Whether the loss needs the reference model; the reward may be all that does.
    pub(super) has_reference_in_loss: bool,
    pub(super) reference: Option<Weights>,
    pub(super) given_reward: Option<fn(&Episode) -> f64>,
    pub(super) advantage: Arc<dyn AdvantageEstimator>,
    pub(super) batch: BatchSettings,
    pub(super) learning_rate: LearningRate,
    pub(super) lambda: LambdaSchedule,
    pub(super) layout: RunLayout,
    pub(super) ranks: Arc<Ranks>,
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
        let sampler = EpisodeSampler::new(&run.card, section.temperature)?
            .with_engine(engine)
            .with_precision(run.policy.precision);
        Ok(Self {
            section,
            seed: run.seed,
            problems,
            order: DataOrder::new(run.seed, problems.len())
                .ok_or_else(|| Error::stage("ordering the problems", "there are none"))?,
            overlong: OverlongRule::of(&section.reward, sampler.settings()),
            sampler,
            has_reference_in_loss: settings.loss.needs_reference(),
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
                share_prefixes: section.share_prefixes,
                redistribute_rows: true,
                parallelism,
            },
            learning_rate: LearningRate::of(&section.optimizer, run.num_steps),
            lambda: LambdaSchedule::of(&section.reward, run.num_steps),
            layout: run.layout.clone(),
            ranks,
            cache_takes_turns: memory.cache_takes_turns,
        })
    }

    /// Gives the memory of the KV cache to training, where the two take turns.
    pub(super) fn yield_cache(&self, model: &PolicyModel) -> Result<()> {
        if self.cache_takes_turns {
            self.sampler.release_memory();
            empty_cache(model.device())?;
        }
        Ok(())
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
        let started = Instant::now();
        model.begin_sampling()?;
        context.clock.book(Phase::Rollout, started);
        let lambda = self.lambda.at(done);
        let Some(sampled) = self.sample_groups(done, lambda, model, &mut context)? else {
            return Ok(None);
        };
        let started = Instant::now();
        let rows = self.step_rows(&sampled)?;
        let num_own: usize = rows.mini_batches.iter().map(Vec::len).sum();
        let mut sums = [num_own as f64];
        self.ranks.sum(&mut sums)?;
        let num_rows = count_of(sums[0]);
        context.clock.book(Phase::Reward, started);
        let skipped = self.skipped(&rows, model, &mut context)?;
        model.end_sampling();
        self.yield_cache(model)?;
        let learning_rate = self.learning_rate.at(done);
        let update = self.update(
            &rows.mini_batches,
            skipped,
            learning_rate,
            model,
            optimizer,
            &mut context,
        )?;
        let Some(update) = update else {
            return Ok(None);
        };
        let mut update = UpdateMetrics { num_rows, ..update };
        update.kl_reference = update.kl_reference.or(sampled.kl_reference);
        let started = Instant::now();
        let dump_every = self.section.dump_episodes_every_steps;
        if dump_every.is_some_and(|every| context.step.is_multiple_of(every as u64)) {
            let records = episode_records(context.step, &sampled.episodes, &model.tokenizer);
            let path = self.layout.episodes(Stage::Grpo, context.step);
            self.set_phase(context.step, "writing episodes");
            episode_files::write(&path, records, &self.ranks)?;
        }
        context.clock.book(Phase::Save, started);
        let metrics = self.episode_metrics(&sampled)?;
        let trained = update.num_tokens * self.section.num_updates_per_rollout;
        let tokens = [
            (Phase::Rollout, metrics.decoded_tokens),
            (Phase::Train, trained),
        ];
        let timing = context.clock.timing(&tokens, &exchanged_bytes(&self.ranks));
        let refills = self.section.max_sampling_rounds > 1;
        Ok(Some(GrpoLine {
            step: context.step,
            epoch: self.order.epoch(self.position(done)),
            episodes: metrics,
            constant_groups: sampled.num_constant,
            num_groups: refills.then_some(sampled.kept.len()),
            sampling_rounds: refills.then_some(sampled.num_rounds),
            lambda,
            learning_rate,
            update,
            validation: None,
            timing,
        }))
    }

    /// The rows of what was sampled, by mini-batch.
    fn step_rows(&self, sampled: &Sampled) -> Result<StepRows> {
        let num_mini_batches = self.section.num_mini_batches;
        let mut members: Vec<Vec<&RewardedEpisode>> = vec![Vec::new(); num_mini_batches];
        let mut dropped = Vec::new();
        let groups = sampled.episodes.chunks_exact(self.section.group_size);
        for (slot, group) in sampled.slots.iter().zip(groups) {
            // By the place among the kept groups of all ranks, so that mini-batches do not depend on ranks.
            match sampled.kept.binary_search(slot) {
                Ok(place) => members[place % num_mini_batches].extend(group),
                Err(_) => dropped.extend(group),
            }
        }
        let (mut uncomputed, _) = rows_to_train(&dropped, false)?;
        let mut mini_batches = Vec::with_capacity(num_mini_batches);
        for members in members {
            let (rows, masked) = rows_to_train(&members, self.section.mask_truncated)?;
            uncomputed.extend(masked);
            mini_batches.push(rows);
        }
        Ok(StepRows {
            mini_batches,
            uncomputed,
        })
    }

    /// Metrics of the episodes of all ranks; a collective.
    fn episode_metrics(&self, sampled: &Sampled) -> Result<EpisodeMetrics> {
        let summaries = EpisodeSummary::of_all(&sampled.episodes);
        let group_size = self.section.group_size;
        let slots = sampled.slots.iter();
        let slots = slots.flat_map(|slot| std::iter::repeat_n(*slot, group_size));
        let mut all: Vec<(usize, EpisodeSummary)> = slots.zip(summaries).collect();
        if !self.ranks.is_alone() {
            let exchanging = |error| Error::stage("exchanging the metrics of episodes", error);
            let bytes = serde_json::to_vec(&all).map_err(exchanging)?;
            all.clear();
            for bytes in self.ranks.gather_bytes(&bytes)? {
                let of_rank: Vec<(usize, EpisodeSummary)> =
                    serde_json::from_slice(&bytes).map_err(exchanging)?;
                all.extend(of_rank);
            }
        }
        // The order of the prompts, so that the sums are those of a single rank.
        all.sort_by_key(|(slot, _)| *slot);
        let summaries: Vec<EpisodeSummary> = all.into_iter().map(|(_, one)| one).collect();
        EpisodeMetrics::of_summaries(&summaries)
            .ok_or_else(|| Error::stage("summarising a step", "no episodes"))
    }

    pub(super) fn set_phase(&self, step: u64, what: &str) {
        self.ranks.set_step_phase(Stage::Grpo.name(), step, what);
    }

    /// Position of a step's first prompt in the endless sequence of prompts.
    fn position(&self, done: u64) -> u64 {
        done * self.section.prompts_per_step as u64
    }

    /// The problems of a step, of all ranks.
    pub(super) fn prompts(&mut self, done: u64) -> Vec<usize> {
        let first = self.position(done);
        (0..self.section.prompts_per_step as u64)
            .map(|slot| self.order.item(first + slot))
            .collect()
    }
}

/// This rank's rows of a step.
pub(super) struct StepRows {
    /// Rows of each mini-batch.
    pub(super) mini_batches: Vec<Vec<TrainingRow>>,
    /// Rows that are in none: of groups without a signal, and masked ones.
    pub(super) uncomputed: Vec<TrainingRow>,
}
