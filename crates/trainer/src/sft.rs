//! Stage 1: cold-start format fine-tuning.

use std::sync::Arc;
use std::time::Instant;

use asyncthink_data::TrainingRow;
use asyncthink_data::parquet::{SftPair, read_sft_pairs};
use asyncthink_recipe::{Recipe, SftMetric, SftSection, Stage};
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::figures::BatchFigures;
use crate::fingerprint;
use crate::layout::RunLayout;
use crate::loss::Aggregation;
use crate::metrics::{Phase, StepClock, Timing};
use crate::models::sft_tokenizer;
use crate::observer::{Observer, RunStart, StepReport, StopFlag};
use crate::optimizer::AdamW;
use crate::problems::check_synth_is_complete;
use crate::ranks::Ranks;
use crate::run::{
    Origin, RunOptions, RunOutcome, SavePolicy, StageRun, check_finite, learning_rate,
    new_optimizer,
};
use crate::streams::DataOrder;
use crate::trainee::Trainee;
use crate::update::{BatchSettings, Objective, accumulate_gradient, score_rows};

/// Most pairs that are held out to measure the loss on.
const MAX_HELD_OUT: usize = 256;

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
    num_trained_tokens: usize,
    num_micro_batches: usize,
    padding_share: f64,
    timing: Timing,
}

/// Fine-tunes the recipe's model on the pairs that `synth` wrote.
///
/// # Errors
/// When the recipe has no `[sft]`, an input is missing or damaged, the loss stops being finite, or the disk refuses.
pub fn run_sft(
    recipe: &Recipe,
    options: &RunOptions,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<RunOutcome> {
    let section = recipe
        .sft
        .as_ref()
        .ok_or(Error::MissingSection { section: "sft" })?;
    let Rows {
        train: rows,
        held_out,
    } = read_rows(recipe, section)?;
    let num_steps = section.num_steps as u64;
    let save = SavePolicy::of_sft(recipe, section);
    let origin = Origin::of_data(fingerprint::of_rows(&rows));
    let ranks = Arc::clone(&options.ranks);
    let (mut run, checkpoint) = StageRun::open(
        recipe,
        Stage::Sft,
        origin,
        num_steps,
        save,
        options,
        observer,
    )?;
    if run.is_finished() {
        return Ok(run.finished());
    }
    let mut model = model_to_train(recipe, checkpoint.as_ref(), &rows, &ranks)?;
    run.check_same_start(&model)?;
    let mut optimizer = new_optimizer(
        &mut model,
        &section.optimizer,
        recipe,
        &ranks,
        checkpoint.as_ref(),
    )?;
    observer.started(&RunStart {
        stage: Stage::Sft,
        step: run.step(),
        num_steps,
        resumed_from: checkpoint.map(|checkpoint| checkpoint.dir),
        num_parameters: model.config().num_parameters(),
        num_trained: model.num_trained(),
        num_items: rows.len(),
    });
    let mut batches = Batches::new(recipe.seed, &rows, section.batch_tokens, run.step())?;
    while !run.is_finished() {
        let mut clock = run.clock();
        let batch = batches.next_batch();
        let learning_rate = learning_rate(&section.optimizer, num_steps).at(run.step());
        let update = Update {
            section,
            step: run.step() + 1,
            learning_rate,
            ranks: &ranks,
        };
        let num_updates = optimizer.num_updates();
        let result = update.run(&model, &mut optimizer, &batch, observer, stop, &mut clock);
        let result =
            result.map_err(|error| run.fail(error, &model, &optimizer, num_updates, observer))?;
        let Some((figures, grad_norm)) = result else {
            return run.stop(stop, &model, &optimizer, observer);
        };
        let is_last = run.step() + 1 == num_steps;
        let is_measured = section
            .eval_every_steps
            .is_some_and(|every| is_last || (run.step() + 1).is_multiple_of(every as u64));
        let measure = || held_out_loss(&model, &held_out, section.micro_batch_tokens, &ranks);
        let held_out_loss = is_measured.then(measure).transpose()?.flatten();
        let line = SftLine {
            step: run.step() + 1,
            epoch: batch.epoch,
            loss: figures.loss,
            held_out_loss,
            learning_rate,
            grad_norm,
            num_rows: batch.rows.len(),
            num_tokens: figures.num_tokens,
            num_trained_tokens: figures.num_trained,
            num_micro_batches: figures.num_micro_batches,
            padding_share: figures.padding_share,
            timing: clock.timing(
                &[(Phase::Train, figures.num_tokens)],
                ranks.group().traffic(),
            ),
        };
        if is_measured || is_last || line.step.is_multiple_of(section.log_every_steps as u64) {
            run.append_metrics(&line)?;
        }
        report(observer, &line, num_steps);
        run.note(SftMetric::Loss.name(), Some(line.loss));
        if is_measured {
            run.note(SftMetric::HeldOutLoss.name(), held_out_loss);
        }
        run.finish_step(&model, &optimizer, observer)?;
        if !run.is_finished() && run.stop_requested(stop)?.is_some() {
            return run.stop(stop, &model, &optimizer, observer);
        }
    }
    Ok(run.finished())
}

fn model_to_train(
    recipe: &Recipe,
    checkpoint: Option<&Checkpoint>,
    rows: &[TrainingRow],
    ranks: &Arc<Ranks>,
) -> Result<Trainee> {
    let device = ranks.open_device(recipe)?;
    let model = match checkpoint {
        Some(checkpoint) => Trainee::load(&checkpoint.dir, recipe, ranks, device)?,
        None => Trainee::for_sft(recipe, ranks, device)?,
    };
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

/// The pairs as rows, in the order of the file.
struct Rows {
    train: Vec<TrainingRow>,
    /// Empty unless `eval_every_steps` asks for them.
    held_out: Vec<TrainingRow>,
}

fn read_rows(recipe: &Recipe, section: &SftSection) -> Result<Rows> {
    let path = RunLayout::new(&recipe.run_dir).synth().pairs();
    if !path.exists() {
        return Err(Error::NoRows { path });
    }
    check_synth_is_complete(recipe)?;
    let tokenizer = sft_tokenizer(recipe)?;
    let pairs = read_sft_pairs(&path)?;
    let num_train = match section.eval_every_steps {
        Some(_) => first_held_out(&pairs),
        None => pairs.len(),
    };
    let mut train = pairs
        .iter()
        .map(|pair| pair.tokenize(&tokenizer))
        .collect::<Result<Vec<_>, _>>()?;
    let held_out = train.split_off(num_train);
    if train.is_empty() {
        return Err(Error::NoRows { path });
    }
    Ok(Rows { train, held_out })
}

/// Index of the first held-out pair: one twentieth of the pairs, at most [`MAX_HELD_OUT`], in whole traces from the end.
fn first_held_out(pairs: &[SftPair]) -> usize {
    let wanted = (pairs.len() / 20).min(MAX_HELD_OUT);
    let mut first = pairs.len() - wanted;
    while first < pairs.len() && first > 0 && pairs[first].trace_id == pairs[first - 1].trace_id {
        first += 1;
    }
    first
}

/// Mean loss of the trained tokens of rows that are never trained on; `None` without any. Every rank scores its share.
fn held_out_loss(
    model: &Trainee,
    rows: &[TrainingRow],
    micro_batch_tokens: usize,
    ranks: &Ranks,
) -> Result<Option<f64>> {
    let share = &rows[ranks.share_of(rows.len())];
    let scores = score_rows(&*model.gathered()?, share, 1.0, micro_batch_tokens)?.concat();
    let mut sums = [scores.iter().sum::<f64>(), scores.len() as f64];
    ranks.sum(&mut sums)?;
    let [sum, num_scores] = sums;
    Ok((num_scores > 0.0).then(|| -sum / num_scores))
}

fn check_lengths(rows: &[TrainingRow], model: &Trainee) -> Result<()> {
    let limit_tokens =
        usize::try_from(model.config().max_position_embeddings).unwrap_or(usize::MAX);
    match rows
        .iter()
        .enumerate()
        .find(|(_, row)| row.len() > limit_tokens)
    {
        None => Ok(()),
        Some((index, row)) => Err(Error::RowTooLong {
            row: index,
            num_tokens: row.len(),
            limit_name: "the model's `max_position_embeddings`",
            limit_tokens,
        }),
    }
}

/// The update of one step.
struct Update<'a> {
    section: &'a SftSection,
    step: u64,
    learning_rate: f64,
    ranks: &'a Ranks,
}

impl Update<'_> {
    /// Returns the batch's figures and gradient norm; `None` if the stop flag was raised before the weights moved.
    fn run(
        &self,
        model: &Trainee,
        optimizer: &mut AdamW,
        batch: &Batch,
        observer: &mut dyn Observer,
        stop: &StopFlag,
        clock: &mut StepClock,
    ) -> Result<Option<(BatchFigures, f64)>> {
        let settings = BatchSettings {
            objective: Objective::Sft,
            aggregation: Aggregation::TokenMean,
            temperature: 1.0,
            micro_batch_tokens: self.section.micro_batch_tokens,
            activation_checkpointing: self.section.activation_checkpointing,
        };
        let ranks = self.ranks;
        ranks.set_step_phase(Stage::Sft, self.step, "computing the gradient");
        ranks.check_same("the batch of a step", &batch.identity(self.step))?;
        optimizer.zero_grad();
        let started = Instant::now();
        let figures = accumulate_gradient(
            model.weights(),
            None,
            &share_of(&batch.rows, ranks),
            &settings,
            optimizer,
            &mut |done, total| {
                observer.phase(Phase::Train, done as u64, total as u64);
                stop.requested().is_none()
            },
        )?;
        clock.book(Phase::Train, started);
        let Some(figures) = figures else {
            return Ok(None);
        };
        check_finite(self.step, "the loss", figures.loss)?;
        let started = Instant::now();
        ranks.set_step_phase(Stage::Sft, self.step, "updating the weights");
        let grad_norm = optimizer.clip_grad_norm(self.section.optimizer.max_grad_norm)?;
        check_finite(self.step, "the gradient norm", grad_norm)?;
        optimizer.step(self.learning_rate)?;
        clock.book(Phase::Optimizer, started);
        Ok(Some((figures, grad_norm)))
    }
}

/// Rows of one step.
struct Batch {
    rows: Vec<TrainingRow>,
    /// Their indices among all rows.
    indices: Vec<usize>,
    /// Epoch of its first row, counted from 0.
    epoch: u64,
}

impl Batch {
    /// What all ranks must agree on before they share it out.
    fn identity(&self, step: u64) -> String {
        format!("step {step}: rows {:?}", self.indices)
    }
}

/// This rank's rows of a batch that all ranks know: longest first, each to the rank with the fewest tokens so far.
fn share_of(rows: &[TrainingRow], ranks: &Ranks) -> Vec<TrainingRow> {
    if ranks.is_alone() {
        return rows.to_vec();
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(rows[index].len()));
    let mut loads = vec![0; ranks.world_size()];
    let mut own = Vec::new();
    for index in order {
        let lightest = (0..loads.len())
            .min_by_key(|&rank| loads[rank])
            .unwrap_or(0);
        loads[lightest] += rows[index].len();
        if lightest == ranks.rank() {
            own.push(rows[index].clone());
        }
    }
    own
}

/// Cuts the endless sequence of rows into batches of at most `batch_tokens` tokens, at least one row each. A batch may
/// span two epochs.
struct Batches<'a> {
    rows: &'a [TrainingRow],
    order: DataOrder,
    batch_tokens: usize,
    position: u64,
}

impl<'a> Batches<'a> {
    /// The batches after the first `num_done`. Skipping walks through lengths only, so it costs microseconds a batch.
    fn new(seed: u64, rows: &'a [TrainingRow], batch_tokens: usize, num_done: u64) -> Result<Self> {
        let order = DataOrder::new(seed, rows.len())
            .ok_or_else(|| Error::stage("ordering the training rows", "there are none"))?;
        let mut batches = Self {
            rows,
            order,
            batch_tokens,
            position: 0,
        };
        for _ in 0..num_done {
            batches.next_indices();
        }
        Ok(batches)
    }

    fn next_indices(&mut self) -> Vec<usize> {
        let mut indices = Vec::new();
        let mut num_tokens = 0;
        loop {
            let index = self.order.item(self.position);
            num_tokens += self.rows[index].len();
            if !indices.is_empty() && num_tokens > self.batch_tokens {
                return indices;
            }
            indices.push(index);
            self.position += 1;
        }
    }

    fn next_batch(&mut self) -> Batch {
        let epoch = self.order.epoch(self.position);
        let indices = self.next_indices();
        let rows = indices
            .iter()
            .map(|&index| self.rows[index].clone())
            .collect();
        Batch {
            rows,
            indices,
            epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use asyncthink_data::TokenId;

    fn rows() -> Vec<TrainingRow> {
        (0..10_u32)
            .map(|index| {
                let response = vec![TokenId(index); 1 + index as usize % 4];
                TrainingRow::sft(&[TokenId(index)], &response).unwrap()
            })
            .collect()
    }

    #[test]
    fn batches_after_a_skip_are_those_of_the_straight_walk() {
        let rows = rows();
        let mut straight = Batches::new(5, &rows, 12, 0).unwrap();
        let mut walked = Vec::new();
        for _ in 0..20 {
            walked.push(straight.next_batch());
        }
        assert!(walked.last().unwrap().epoch >= 3);
        for num_done in 0..20 {
            let mut skipped = Batches::new(5, &rows, 12, num_done).unwrap();
            let (got, expected) = (
                skipped.next_batch(),
                &walked[usize::try_from(num_done).unwrap()],
            );
            assert_eq!(
                (got.rows, got.epoch),
                (expected.rows.clone(), expected.epoch)
            );
        }
    }

    #[test]
    fn batches_respect_the_budget_and_hold_at_least_one_row() {
        let rows = rows();
        let mut batches = Batches::new(5, &rows, 12, 0).unwrap();
        for _ in 0..20 {
            let batch = batches.next_batch();
            assert!(batch.rows.iter().map(TrainingRow::len).sum::<usize>() <= 12);
        }
        let mut tiny = Batches::new(5, &rows, 1, 0).unwrap();
        assert_eq!(tiny.next_batch().rows.len(), 1);
    }
}
