//! Stage 1: cold-start format fine-tuning.

mod rows;

use std::sync::Arc;
use std::time::Instant;

use asyncthink_algorithms::LearningRate;
use asyncthink_checkpoint::{Checkpoint, fingerprint};
use asyncthink_data::{Batch, Batches, TrainingRow};
use asyncthink_distributed::{AdamW, Ranks};
use asyncthink_gradient::{
    BatchMetrics, BatchSettings, accumulate_gradient, rows_of_rank, score_rows,
};
use asyncthink_model::ModelConfig;
use asyncthink_recipe::{SftMetric, Stage};
use serde::Serialize;
use tch::Device;

use rows::{Rows, check_lengths, read_rows};

use crate::error::{Error, Result};
use crate::models::{config_for_sft, load_for_sft};
use crate::observer::{Observer, RunStart, StepReport, StopFlag};
use crate::run::{
    Asked, MemoryPlan, Origin, RunOptions, RunOutcome, StageRun, check_finite, check_shared_folder,
    exchanged_bytes, machine_of, new_optimizer, settle,
};
use crate::settings::{RunSettings, SftSettings};
use asyncthink_gradient::PolicyModel;
use asyncthink_metrics::{Phase, StepClock, Timing};

/// Said where `sft.eval_every_steps` cannot be obeyed.
const NOTHING_HELD_OUT: &str = "`sft.eval_every_steps` is set, but all pairs are of one problem: none is held out, and \
     `held_out_loss` stays null; make traces of two problems or more";

/// A line of `sft/metrics.jsonl`.
#[derive(Debug, Serialize)]
struct SftLine {
    step: u64,
    epoch: u64,
    loss: f64,
    /// Null except at steps that `eval_every_steps` names.
    held_out_loss: Option<f64>,
    learning_rate: f64,
    grad_norm: f64,
    num_rows: usize,
    num_tokens: usize,
    num_computed_tokens: usize,
    num_trained_tokens: usize,
    num_micro_batches: usize,
    padding_share: f64,
    rank_imbalance: f64,
    thread_imbalance: f64,
    timing: Timing,
}

/// Fine-tunes the recipe's model on the pairs that `synth` wrote.
///
/// # Errors
/// When an input is missing or damaged, the loss stops being finite, or the disk refuses.
#[expect(clippy::too_many_lines, reason = "the loop, read from top to bottom")]
pub fn run_sft(
    settings: &SftSettings,
    options: &RunOptions,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<RunOutcome> {
    let SftSettings {
        run: run_settings,
        section,
    } = settings;
    check_shared_folder(run_settings, &options.ranks)?;
    let Rows {
        train: rows,
        held_out,
    } = read_rows(settings)?;
    if section.eval_every_steps.is_some() && held_out.is_empty() {
        observer.warning(NOTHING_HELD_OUT);
    }
    let num_steps = run_settings.num_steps;
    let origin = Origin::of_data(fingerprint::of_rows(&rows));
    let ranks = Arc::clone(&options.ranks);
    let (mut run, checkpoint) = StageRun::open(run_settings, origin, options, observer)?;
    if run.is_finished() {
        return Ok(run.finished());
    }
    let device = ranks.open_device(&run_settings.device)?;
    let run_settings = &settle(run_settings, &ranks, device, observer)?;
    let config = config_to_train(run_settings, checkpoint.as_ref())?;
    let longest_row = rows.iter().map(TrainingRow::len).max();
    let machine = machine_of(&ranks, device)?;
    let mut memory = MemoryPlan::new(
        run_settings,
        &config,
        &machine,
        &settings.memory(&config, &machine, longest_row),
        Asked {
            micro_batch_tokens: section.micro_batch_tokens,
            activation_checkpointing: section.activation_checkpointing,
        },
        run.chosen(),
        observer,
    )?;
    let mut model = model_to_train(run_settings, checkpoint.as_ref(), &rows, &ranks, device)?;
    run.check_same_start(&model)?;
    let mut optimizer = new_optimizer(&mut model, run_settings, &ranks, checkpoint.as_ref())?;
    observer.started(&RunStart {
        stage: Stage::Sft,
        step: run.step(),
        num_steps,
        resumed_from: checkpoint.map(|checkpoint| checkpoint.dir),
        num_parameters: model.config().num_parameters(),
        num_trained: model.num_trained(),
        num_items: rows.len(),
    });
    let batch_settings = settings.batch(model.parallelism(), memory.chosen);
    let schedule = LearningRate::of(&section.optimizer, num_steps);
    let mut batches = Batches::new(run_settings.seed, &rows, section.batch_tokens, run.step())
        .ok_or_else(|| Error::stage("ordering the training rows", "there are none"))?;
    while !run.is_finished() {
        let mut clock = run.clock();
        let batch = batches.next_batch();
        let learning_rate = schedule.at(run.step());
        let update = Update {
            batch: &batch_settings,
            max_grad_norm: section.optimizer.max_grad_norm,
            step: run.step() + 1,
            learning_rate,
            ranks: &ranks,
        };
        let num_updates = optimizer.num_updates();
        let result = update.run(&model, &mut optimizer, &batch, observer, stop, &mut clock);
        let result =
            result.map_err(|error| run.fail(error, &model, &optimizer, num_updates, observer))?;
        let Some((metrics, grad_norm)) = result else {
            return run.stop(stop, &model, &optimizer, observer);
        };
        let is_last = run.step() + 1 == num_steps;
        let is_measured = section
            .eval_every_steps
            .is_some_and(|every| is_last || (run.step() + 1).is_multiple_of(every as u64));
        let measure = || held_out_loss(&model, &held_out, &batch_settings, &ranks);
        let held_out_loss = is_measured.then(measure).transpose()?.flatten();
        let line = SftLine {
            step: run.step() + 1,
            epoch: batch.epoch,
            loss: metrics.loss,
            held_out_loss,
            learning_rate,
            grad_norm,
            num_rows: batch.rows.len(),
            num_tokens: metrics.num_tokens,
            num_computed_tokens: metrics.num_computed_tokens,
            num_trained_tokens: metrics.num_trained,
            num_micro_batches: metrics.num_micro_batches,
            padding_share: metrics.padding_share,
            rank_imbalance: metrics.rank_imbalance,
            thread_imbalance: metrics.thread_imbalance,
            timing: clock.timing(
                &[(Phase::Train, metrics.num_tokens)],
                &exchanged_bytes(&ranks),
            ),
        };
        run.write_metrics(line.step, is_measured, &line)?;
        report(observer, &line, num_steps);
        memory.measure(run_settings, &ranks, observer)?;
        run.note(SftMetric::Loss.name(), Some(line.loss));
        if is_measured {
            run.note(SftMetric::HeldOutLoss.name(), held_out_loss);
            run.note_evaluation(held_out_loss, observer);
        }
        run.finish_step(&model, &optimizer, observer)?;
        if !run.is_finished() && run.stop_requested(stop)?.is_some() {
            return run.stop(stop, &model, &optimizer, observer);
        }
    }
    Ok(run.finished())
}

/// Configuration of the model that the stage trains, before anything of it is loaded.
fn config_to_train(settings: &RunSettings, checkpoint: Option<&Checkpoint>) -> Result<ModelConfig> {
    match checkpoint {
        Some(checkpoint) => {
            let folder = settings.policy.folder(&checkpoint.dir);
            Ok(ModelConfig::from_dir(folder)?)
        }
        None => config_for_sft(settings),
    }
}

fn model_to_train(
    settings: &RunSettings,
    checkpoint: Option<&Checkpoint>,
    rows: &[TrainingRow],
    ranks: &Arc<Ranks>,
    device: Device,
) -> Result<PolicyModel> {
    let model = match checkpoint {
        Some(checkpoint) => PolicyModel::load(&checkpoint.dir, &settings.policy, ranks, device)?,
        None => load_for_sft(settings, ranks, device)?,
    };
    model.parallelism().apply();
    check_lengths(rows, &model)?;
    Ok(model)
}

fn report(observer: &mut dyn Observer, line: &SftLine, num_steps: u64) {
    let tokens_per_second = line
        .timing
        .tokens_per_second
        .get(&Phase::Train)
        .copied()
        .unwrap_or_default();
    observer.step(&StepReport {
        step: line.step,
        num_steps,
        figures: &[
            ("loss", line.loss),
            ("learning_rate", line.learning_rate),
            ("grad_norm", line.grad_norm),
            ("tokens_per_second", tokens_per_second),
        ],
    });
}

/// Mean loss of the trained tokens of rows that are never trained on; `None` without any. Every rank scores its share.
fn held_out_loss(
    model: &PolicyModel,
    rows: &[TrainingRow],
    settings: &BatchSettings,
    ranks: &Ranks,
) -> Result<Option<f64>> {
    let share = &rows[ranks.share_of(rows.len())];
    let scores = score_rows(
        &*model.gathered()?,
        share,
        1.0,
        settings.micro_batch_tokens,
        settings.share_prefixes,
    )?;
    let scores = scores.concat();
    let mut sums = [scores.iter().sum::<f64>(), scores.len() as f64];
    ranks.sum(&mut sums)?;
    let [sum, num_scores] = sums;
    Ok((num_scores > 0.0).then(|| -sum / num_scores))
}

/// The update of one step.
struct Update<'a> {
    batch: &'a BatchSettings,
    max_grad_norm: f64,
    step: u64,
    learning_rate: f64,
    ranks: &'a Ranks,
}

impl Update<'_> {
    /// Returns the batch's metrics and gradient norm; `None` if the stop flag was raised before the weights moved.
    fn run(
        &self,
        model: &PolicyModel,
        optimizer: &mut AdamW,
        batch: &Batch,
        observer: &mut dyn Observer,
        stop: &StopFlag,
        clock: &mut StepClock,
    ) -> Result<Option<(BatchMetrics, f64)>> {
        let ranks = self.ranks;
        ranks.set_step_phase(Stage::Sft.name(), self.step, "computing the gradient");
        ranks.check_same("the batch of a step", &batch.identity(self.step))?;
        optimizer.zero_grad();
        let started = Instant::now();
        let metrics = accumulate_gradient(
            model.weights(),
            None,
            &rows_of_rank(
                &batch.rows,
                model.config(),
                self.batch.share_prefixes,
                ranks,
            ),
            self.batch,
            optimizer,
            &mut |done, total| {
                observer.phase(Phase::Train, done as u64, total as u64);
                stop.requested().is_none()
            },
        )?;
        clock.book(Phase::Train, started);
        let Some(metrics) = metrics else {
            return Ok(None);
        };
        check_finite(self.step, "the loss", metrics.loss)?;
        let started = Instant::now();
        ranks.set_step_phase(Stage::Sft.name(), self.step, "updating the weights");
        let grad_norm = optimizer.clip_grad_norm(self.max_grad_norm)?;
        check_finite(self.step, "the gradient norm", grad_norm)?;
        optimizer.step(self.learning_rate)?;
        clock.book(Phase::Optimizer, started);
        Ok(Some((metrics, grad_norm)))
    }
}
