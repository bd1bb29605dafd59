//! Updates of a step.

use std::time::Instant;

use asyncthink_data::TrainingRow;
use asyncthink_distributed::AdamW;
use asyncthink_gradient::{BatchMetrics, Mismatch, PackedBatch, PolicyModel, mismatch_of_rows};
use asyncthink_metrics::Phase;
use asyncthink_recipe::OldPolicy;

use super::line::{UpdateMetrics, UpdateSums};
use super::step::{StepRows, Trainer};
use super::step_context::StepContext;
use crate::error::{Error, Result};
use crate::run::check_finite;

impl Trainer<'_> {
    /// Compares trainer and sampler on the rows that the first update computes no gradient for, if the recipe bounds the difference.
    pub(super) fn skipped(
        &self,
        rows: &StepRows,
        model: &PolicyModel,
        context: &mut StepContext<'_>,
    ) -> Result<Option<Mismatch>> {
        if self.section.max_logprob_mismatch.is_none() {
            return Ok(None);
        }
        let started = Instant::now();
        let (first, later) = rows.mini_batches.split_at(1.min(rows.mini_batches.len()));
        let first = first.iter().flatten();
        let skipped: Vec<&TrainingRow> = first
            .filter(|row| !self.batch.has_gradient(row))
            .chain(later.iter().flatten())
            .chain(&rows.uncomputed)
            .collect();
        let own = mismatch_of_rows(model.scorer()?, &skipped, &self.batch)?;
        let all = own.over_ranks(&self.ranks)?;
        context.clock.book(Phase::Score, started);
        Ok(Some(all))
    }

    /// All updates on one rollout; `None` if the stop flag was raised before the weights moved.
    pub(super) fn update(
        &self,
        mini_batches: &[Vec<TrainingRow>],
        skipped: Option<Mismatch>,
        learning_rate: f64,
        model: &PolicyModel,
        optimizer: &mut AdamW,
        context: &mut StepContext<'_>,
    ) -> Result<Option<UpdateMetrics>> {
        let started = Instant::now();
        self.set_phase(context.step, "computing the gradient");
        let mut batches = mini_batches
            .iter()
            .map(|rows| PackedBatch::new(model.weights(), rows, &self.batch, &self.ranks))
            .collect::<Result<Vec<_>, _>>()?;
        if self.batch.old_policy == OldPolicy::Trainer {
            // The first update finds the weights as they were.
            for batch in batches.iter_mut().skip(1) {
                batch.score_old(model.weights())?;
            }
        }
        context.clock.book(Phase::Train, started);
        let mut sums = UpdateSums::new(self.has_reference_in_loss);
        for pass in 0..self.section.num_updates_per_rollout {
            for (index, batch) in batches.iter_mut().enumerate() {
                let is_first = pass == 0 && index == 0;
                let metrics = self.gradient(batch, is_first, model, optimizer, context)?;
                let Some(mut metrics) = metrics else {
                    return Ok(None);
                };
                if is_first {
                    if let Some(skipped) = &skipped {
                        metrics.include_mismatch(skipped);
                    }
                    self.check_mismatch(context.step, &metrics)?;
                    sums.start(&metrics);
                }
                let started = Instant::now();
                self.set_phase(context.step, "updating the weights");
                let grad_norm = optimizer.clip_grad_norm(self.section.optimizer.max_grad_norm)?;
                check_finite(context.step, "the gradient norm", grad_norm)?;
                // Without a signal, weights and moments stay: neither decays.
                let has_signal = grad_norm > 0.0;
                if has_signal {
                    optimizer.step(learning_rate)?;
                }
                context.clock.book(Phase::Optimizer, started);
                sums.add(&metrics, pass == 0, grad_norm, has_signal);
            }
        }
        Ok(Some(sums.metrics()))
    }

    /// The gradient of a mini-batch; `None` if the stop flag was raised before the first one was complete.
    fn gradient(
        &self,
        batch: &mut PackedBatch<'_>,
        is_first: bool,
        model: &PolicyModel,
        optimizer: &mut AdamW,
        context: &mut StepContext<'_>,
    ) -> Result<Option<BatchMetrics>> {
        optimizer.zero_grad();
        let started = Instant::now();
        let StepContext {
            step,
            observer,
            stop,
            ..
        } = context;
        self.set_phase(*step, "computing the gradient");
        let reference = self
            .reference
            .as_ref()
            .filter(|_| self.has_reference_in_loss);
        let metrics = batch.accumulate_gradient(
            model.weights(),
            reference,
            optimizer,
            &mut |done, total| {
                observer.phase(Phase::Train, done as u64, total as u64);
                !is_first || stop.requested().is_none()
            },
        )?;
        let step = *step;
        context.clock.book(Phase::Train, started);
        let Some(metrics) = metrics else {
            return Ok(None);
        };
        if reference.is_some() {
            context
                .clock
                .add(Phase::Reference, metrics.reference_seconds);
            context.clock.add(Phase::Train, -metrics.reference_seconds);
        }
        check_finite(step, "the loss", metrics.loss)?;
        Ok(Some(metrics))
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
