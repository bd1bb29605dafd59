//! Stage 2: organizer-worker policy optimisation.
//!
//! # Paper
//! arXiv:2510.26658, section 3. We differ, by option or by decision:
//! 1. The probability ratio is taken against the log-probabilities that the sampler stored, at every update. Sampler and
//!    trainer share the weights, so at the first update the ratio is 1 up to the measured mismatch, and at later ones it
//!    is the ratio to the distribution that the tokens really came from. No second scoring pass is ever needed.
//! 2. All updates of a step use the whole batch of the rollout.
//! 3. Advantages may be mean-centred only, the reward may gate its concurrency term, and a KL term is optional.

use std::sync::Arc;
use std::time::Instant;

use asyncthink_data::TrainingRow;
use asyncthink_data::parquet::{read_episodes, write_episodes};
use asyncthink_model::Decoder;
use asyncthink_recipe::{self as recipes, GrpoSection, LossAggregation, Recipe, Stage};
use asyncthink_rollout::{Episode, Query};
use asyncthink_tasks::Problem;
use tch::Kind;

use crate::advantage::Advantage;
use crate::card::ModelCard;
use crate::checkpoint::model_identity;
use crate::episode_figures::EpisodeFigures;
use crate::episodes::{
    GradedEpisode, assign_advantages, episode_records, grade_episode, training_rows,
};
use crate::error::{Error, Result};
use crate::figures::BatchFigures;
use crate::fingerprint;
use crate::grpo_line::{GrpoLine, UpdateFigures, report};
use crate::layout::RunLayout;
use crate::loss::{Aggregation, Clip};
use crate::metrics::{Phase, StepClock};
use crate::mismatch::mismatch_of_skipped_rows;
use crate::models::{ModelFiles, grpo_initial_model};
use crate::observer::{Observer, RunStart, StopFlag};
use crate::optimizer::AdamW;
use crate::problems::train_problems;
use crate::ranks::{Ranks, count_of};
use crate::reward::{LambdaSchedule, RewardRule};
use crate::run::{
    Origin, Resume, RunOptions, RunOutcome, SavePolicy, StageRun, check_finite, learning_rate,
    new_optimizer, restore_optimizer,
};
use crate::sampling::EpisodeSampler;
use crate::schedule::LearningRate;
use crate::streams::{DataOrder, Stream, derive_seed};
use crate::update::{BatchSettings, Objective, accumulate_gradient};

/// Optimises the model that `sft` left.
///
/// # Errors
/// When the recipe has no `[grpo]`, an input is missing or damaged, a figure stops being finite, trainer and sampler
/// disagree by more than the recipe allows, or the disk refuses.
pub fn run_grpo(
    recipe: &Recipe,
    options: &RunOptions,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<RunOutcome> {
    let section = recipe
        .grpo
        .as_ref()
        .ok_or(Error::MissingSection { section: "grpo" })?;
    let problems = train_problems(recipe)?;
    let initial = grpo_initial_model(recipe);
    let may_resume = match options.resume {
        Resume::Auto => RunLayout::new(&recipe.run_dir)
            .latest_model(Stage::Grpo)
            .exists(),
        Resume::From(_) => true,
        Resume::Never => false,
    };
    if !may_resume && let Err(error) = initial {
        return Err(error);
    }
    let num_steps = section.num_steps as u64;
    let save = SavePolicy {
        every_steps: section.save_every_steps as u64,
        keep: section.keep_checkpoints,
    };
    let origin = Origin {
        dataset: fingerprint::of_problems(&problems)?,
        initial_model: match &initial {
            Ok(dir) => Some(model_identity(dir)?),
            Err(_) => None,
        },
    };
    let ranks = Arc::clone(&options.ranks);
    if section.prompts_per_step < ranks.world_size() {
        return Err(Error::TooManyRanks {
            key: "grpo.prompts_per_step",
            count: section.prompts_per_step,
            world_size: ranks.world_size(),
        });
    }
    let (mut run, checkpoint) = StageRun::open(
        recipe,
        Stage::Grpo,
        origin,
        num_steps,
        save,
        options,
        observer,
    )?;
    if run.is_finished() {
        return Ok(run.finished());
    }
    // A run that goes on needs the model that it began with for the KL term alone.
    let (begin, reference) = match (&checkpoint, section.kl_beta > 0.0) {
        (Some(checkpoint), false) => (checkpoint.dir.clone(), None),
        (Some(checkpoint), true) => (checkpoint.dir.clone(), Some(initial?)),
        (None, has_reference) => {
            let initial = initial?;
            (initial.clone(), has_reference.then_some(initial))
        }
    };
    let device = ranks.open_device(recipe)?;
    let mut model = ModelFiles::load_to_train(&begin, recipe, device)?;
    run.check_same_start(&model)?;
    let bucket_bytes = recipe.distributed.bucket_bytes();
    let mut optimizer = new_optimizer(&mut model, &section.optimizer, &ranks, bucket_bytes)?;
    if let Some(checkpoint) = &checkpoint {
        restore_optimizer(&mut optimizer, &ranks, checkpoint)?;
    }
    let reference = reference
        .map(|dir| Decoder::load(&dir, device, Kind::Float))
        .transpose()?;
    observer.started(&RunStart {
        stage: Stage::Grpo,
        step: run.step(),
        num_steps,
        resumed_from: checkpoint.map(|checkpoint| checkpoint.dir),
        num_parameters: model.decoder.config().num_parameters(),
        num_trained: model.num_trained(),
        num_items: problems.len(),
    });
    let mut trainer = Trainer::new(recipe, section, &problems, reference, ranks)?;
    while !run.is_finished() {
        let num_updates = optimizer.num_updates();
        let clock = run.clock();
        model.refresh_sampler()?;
        run.set_phase("preparing");
        let result = trainer.step(run.step(), clock, &model, &mut optimizer, observer, stop);
        let result =
            result.map_err(|error| run.fail(error, &model, &optimizer, num_updates, observer))?;
        let Some(line) = result else {
            return run.stop(stop, &model, &optimizer, observer);
        };
        if line.step.is_multiple_of(section.log_every_steps as u64) || line.step == num_steps {
            run.append_metrics(&line)?;
        }
        report(observer, &line, num_steps);
        run.finish_step(&model, &optimizer, observer)?;
        if !run.is_finished() && run.stop_requested(stop)?.is_some() {
            return run.stop(stop, &model, &optimizer, observer);
        }
    }
    Ok(run.finished())
}

/// Everything that stays the same from step to step.
struct Trainer<'a> {
    section: &'a GrpoSection,
    seed: u64,
    problems: &'a [Problem],
    order: DataOrder,
    sampler: EpisodeSampler,
    reference: Option<Decoder>,
    advantage: Advantage,
    batch: BatchSettings,
    learning_rate: LearningRate,
    lambda: LambdaSchedule,
    layout: RunLayout,
    ranks: Arc<Ranks>,
}

impl<'a> Trainer<'a> {
    fn new(
        recipe: &Recipe,
        section: &'a GrpoSection,
        problems: &'a [Problem],
        reference: Option<Decoder>,
        ranks: Arc<Ranks>,
    ) -> Result<Self> {
        let num_steps = section.num_steps as u64;
        Ok(Self {
            section,
            seed: recipe.seed,
            problems,
            order: DataOrder::new(recipe.seed, problems.len())
                .ok_or_else(|| Error::stage("ordering the problems", "there are none"))?,
            sampler: EpisodeSampler::new(&ModelCard::of(recipe), section.temperature)?
                .with_max_agents(recipe.engine.max_agents),
            reference,
            advantage: match section.advantage {
                recipes::Advantage::MeanCentred => Advantage::MeanCentred,
                recipes::Advantage::MeanStd => Advantage::MeanStd {
                    eps: section.advantage_eps,
                },
            },
            batch: batch_settings(section)?,
            learning_rate: learning_rate(&section.optimizer, num_steps),
            lambda: LambdaSchedule {
                first: section.reward.lambda,
                last: section.reward.lambda_final,
                num_steps,
            },
            layout: RunLayout::new(&recipe.run_dir),
            ranks,
        })
    }

    /// One step after `done` finished ones; `None` if the stop flag was raised before the weights moved.
    fn step(
        &mut self,
        done: u64,
        clock: StepClock,
        model: &ModelFiles,
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
        let queries = self.queries(done);
        let Some(episodes) = self.sample(&queries, model, &mut context)? else {
            return Ok(None);
        };
        let lambda = self.lambda.at(done);
        let started = Instant::now();
        let mut episodes = self.grade(episodes, lambda);
        // Groups are whole on every rank.
        let constant_groups =
            assign_advantages(&mut episodes, self.section.group_size, self.advantage);
        let rows = training_rows(&episodes)?;
        let mut sums = [constant_groups as f64, rows.len() as f64];
        self.ranks.sum(&mut sums)?;
        let [constant_groups, num_rows] = sums.map(count_of);
        context.clock.book(Phase::Reward, started);
        let learning_rate = self.learning_rate.at(done);
        let Some(update) = self.update(&rows, learning_rate, model, optimizer, &mut context)?
        else {
            return Ok(None);
        };
        let update = UpdateFigures { num_rows, ..update };
        let started = Instant::now();
        self.dump(context.step, &episodes, &queries, model)?;
        context.clock.book(Phase::Save, started);
        let figures = EpisodeFigures::over_ranks(&episodes, &self.ranks)?;
        let trained = update.num_tokens * self.section.num_updates_per_rollout;
        let timing = context.clock.timing(&[
            (Phase::Rollout, figures.decoded_tokens),
            (Phase::Train, trained),
        ]);
        Ok(Some(GrpoLine {
            step: context.step,
            epoch: self.order.epoch(self.position(done)),
            episodes: figures,
            constant_groups,
            lambda,
            learning_rate,
            update,
            timing,
        }))
    }

    fn set_phase(&self, step: u64, what: &str) {
        self.ranks.set_step_phase(Stage::Grpo, step, what);
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
    fn queries(&mut self, done: u64) -> Vec<Query> {
        let group_size = self.section.group_size;
        let share = self.ranks.share_of(self.section.prompts_per_step);
        let mut queries = Vec::with_capacity(share.len() * group_size);
        for slot in share {
            let prompt_index = self.order.item(self.position(done) + slot as u64);
            for sample_index in 0..group_size {
                // By slot, not by prompt: a step that spans two epochs may hold a prompt twice.
                let episode = (slot * group_size + sample_index) as u64;
                let seed = derive_seed(self.seed, Stream::Rollout, done, episode);
                queries.push(self.sampler.query(
                    &self.problems[prompt_index],
                    prompt_index,
                    sample_index,
                    seed,
                ));
            }
        }
        queries
    }

    fn sample(
        &self,
        queries: &[Query],
        model: &ModelFiles,
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
                model.sampler(),
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
            .map_err(|error| error.at_step(*step))?;
        context.clock.book(Phase::Rollout, started);
        let is_cut_short = episodes.len() < queries.len();
        let mut num_cut_short = [f64::from(u8::from(is_cut_short))];
        self.ranks.sum(&mut num_cut_short)?;
        Ok((num_cut_short[0] == 0.0).then_some(episodes))
    }

    fn grade(&self, episodes: Vec<Episode>, lambda: f64) -> Vec<GradedEpisode> {
        let reward = &self.section.reward;
        let rule = RewardRule {
            lambda,
            tau: reward.tau,
            format_error: reward.format_error,
            gate_concurrency: reward.gate_concurrency,
        };
        episodes
            .into_iter()
            .map(|episode| {
                let problem = &self.problems[episode.prompt_index];
                grade_episode(episode, problem, &rule, reward.count_unjoined)
            })
            .collect()
    }

    /// All updates on one rollout; `None` if the stop flag was raised before the weights moved.
    fn update(
        &self,
        rows: &[TrainingRow],
        learning_rate: f64,
        model: &ModelFiles,
        optimizer: &mut AdamW,
        context: &mut StepContext<'_>,
    ) -> Result<Option<UpdateFigures>> {
        let num_updates = self.section.num_updates_per_rollout;
        let mut means = UpdateFigures::default();
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
            let figures = accumulate_gradient(
                &model.decoder,
                self.reference.as_ref(),
                rows,
                &self.batch,
                &self.ranks,
                &mut |done, total| {
                    observer.phase(Phase::Train, done as u64, total as u64);
                    index > 0 || stop.requested().is_none()
                },
            )?;
            let step = *step;
            context.clock.book(Phase::Train, started);
            let Some(mut figures) = figures else {
                return Ok(None);
            };
            if self.reference.is_some() {
                context
                    .clock
                    .add(Phase::Reference, figures.reference_seconds);
                context.clock.add(Phase::Train, -figures.reference_seconds);
            }
            check_finite(step, "the loss", figures.loss)?;
            if index == 0 {
                if self.section.max_logprob_mismatch.is_some() {
                    let started = Instant::now();
                    let skipped = mismatch_of_skipped_rows(&model.decoder, rows, &self.batch)?;
                    figures.include_mismatch(&skipped.over_ranks(&self.ranks)?);
                    context.clock.book(Phase::Score, started);
                }
                self.check_mismatch(step, &figures)?;
                means.start(&figures);
            }
            let started = Instant::now();
            self.set_phase(step, "updating the weights");
            optimizer.reduce_gradients()?;
            let grad_norm = optimizer.clip_grad_norm(self.section.optimizer.max_grad_norm)?;
            check_finite(step, "the gradient norm", grad_norm)?;
            optimizer.step(learning_rate)?;
            context.clock.book(Phase::Optimizer, started);
            means.add(
                &figures,
                self.reference.is_some(),
                grad_norm,
                num_updates as f64,
            );
        }
        Ok(Some(means))
    }

    fn check_mismatch(&self, step: u64, figures: &BatchFigures) -> Result<()> {
        check_finite(
            step,
            "the log-probability of a token",
            figures.mismatch_max_nats,
        )?;
        match self.section.max_logprob_mismatch {
            Some(bound_nats) if figures.mismatch_max_nats > bound_nats => {
                Err(Error::LogprobMismatch {
                    step,
                    max_nats: figures.mismatch_max_nats,
                    bound_nats,
                })
            }
            _ => Ok(()),
        }
    }

    fn dump(
        &self,
        step: u64,
        episodes: &[GradedEpisode],
        queries: &[Query],
        model: &ModelFiles,
    ) -> Result<()> {
        let is_due = self
            .section
            .dump_episodes_every_steps
            .is_some_and(|every| step.is_multiple_of(every as u64));
        if !is_due {
            return Ok(());
        }
        self.set_phase(step, "writing episodes");
        let texts: Vec<&str> = queries.iter().map(|query| query.text.as_str()).collect();
        let mut records = episode_records(step, episodes, &texts, &model.tokenizer);
        let path = self.layout.episodes(Stage::Grpo, step);
        // Every rank leaves its episodes beside the file, and the first puts them together in the order of the prompts.
        let part = |rank: usize| path.with_extension(format!("rank_{rank}"));
        if !self.ranks.is_first() {
            let written = write_episodes(&part(self.ranks.rank()), &records);
            self.ranks.agree(written.map_err(Error::from))?;
            return self.ranks.agree(Ok(()));
        }
        self.ranks.agree(Ok(()))?;
        let gathered = (1..self.ranks.world_size()).try_for_each(|rank| -> Result<()> {
            records.extend(read_episodes(&part(rank))?);
            Ok(fs_err::remove_file(part(rank))?)
        });
        let written = gathered.and_then(|()| Ok(write_episodes(&path, &records)?));
        self.ranks.agree(written)
    }
}

/// What the parts of one step share.
struct StepContext<'a> {
    /// Counted from 1.
    step: u64,
    observer: &'a mut dyn Observer,
    stop: &'a StopFlag,
    clock: StepClock,
}

fn batch_settings(section: &GrpoSection) -> Result<BatchSettings> {
    let aggregation = match (section.loss_aggregation, section.constant_length_tokens) {
        (LossAggregation::TokenMean, _) => Aggregation::TokenMean,
        (LossAggregation::EpisodeMean, _) => Aggregation::EpisodeMean,
        (LossAggregation::ConstantLength, Some(tokens)) => Aggregation::ConstantLength {
            tokens: tokens as u64,
        },
        (LossAggregation::ConstantLength, None) => {
            return Err(Error::stage(
                "reading `grpo.loss_aggregation`",
                "`constant_length_tokens` is missing",
            ));
        }
    };
    Ok(BatchSettings {
        objective: Objective::Policy {
            clip: Clip {
                low: section.clip_eps_low,
                high: section.clip_eps_high,
            },
            kl_beta: section.kl_beta,
        },
        aggregation,
        temperature: section.temperature,
        micro_batch_tokens: section.micro_batch_tokens,
    })
}
