//! What a pass over a batch measures, as sums over tokens and as means.

use asyncthink_algorithms::{TokenLoss, k3};
use asyncthink_data::RowLabel;
use asyncthink_distributed::{Ranks, count_of};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::head;
use crate::micro_batch::{MicroBatch, to_host};
use crate::mismatch::Mismatch;

/// Metrics of one pass over a batch. Means are 0 where no token was trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchMetrics {
    /// The loss that was differentiated.
    pub loss: f64,
    /// Micro-batches.
    pub num_micro_batches: usize,
    /// Tokens of the computed rows.
    pub num_tokens: usize,
    /// Tokens that went through the model; fewer where rows share their beginning.
    pub num_computed_tokens: usize,
    /// Computed tokens that belong to no row, as a share of all computed ones.
    pub padding_share: f64,
    /// Trained tokens among them; the means below are over these.
    pub num_trained: usize,
    /// Mean entropy of the policy, in nats.
    pub entropy: f64,
    /// Mean k3 estimate of the KL from the sampler's distribution, which the tokens come from, to the policy.
    pub kl_sampler: f64,
    /// Mean k3 estimate of the KL to the reference; 0 without one.
    pub kl_reference: f64,
    /// Effective sample size of the policy's importance weights against the sampler, as a share of the tokens: 1 where all weights are
    /// equal.
    pub effective_sample_size: f64,
    /// Sums of `|dL/dlogp|` by the kind of the row.
    pub gradient_sums: [f64; RowLabel::COUNT],
    /// Means of the loss's own metrics, by name.
    pub loss_metrics: Vec<(&'static str, f64)>,
    /// Largest difference between trainer's and sampler's log-probability, in nats.
    pub mismatch_max_nats: f64,
    /// Mean of that difference.
    pub mismatch_mean_nats: f64,
    /// Tokens that the mismatch is over.
    pub num_compared: usize,
    /// How much more the costliest rank had to compute than the ranks have on average, as a share of it; by predicted cost.
    pub rank_imbalance: f64,
    /// Likewise of the threads of a rank; the largest of all ranks.
    pub thread_imbalance: f64,
    /// Seconds that the first worker spent on the reference model.
    pub reference_seconds: f64,
}

impl BatchMetrics {
    /// Mean of one of the loss's own metrics.
    pub fn loss_metric(&self, name: &str) -> Option<f64> {
        let metric = self.loss_metrics.iter().find(|(known, _)| *known == name);
        metric.map(|(_, mean)| *mean)
    }

    /// Counts rows that were scored and not trained on into the mismatch with the sampler.
    pub fn include_mismatch(&mut self, skipped: &Mismatch) {
        let mut all = Mismatch {
            max_nats: self.mismatch_max_nats,
            sum_nats: self.mismatch_mean_nats * self.num_trained as f64,
            num_tokens: self.num_trained,
        };
        all.add(skipped);
        self.mismatch_max_nats = all.max_nats;
        self.mismatch_mean_nats = all.sum_nats / all.num_tokens.max(1) as f64;
        self.num_compared = all.num_tokens;
    }
}

/// Sums over trained tokens, in f64.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) loss: f64,
    pub(crate) num_tokens: usize,
    pub(crate) num_computed_tokens: usize,
    pub(crate) num_trained: usize,
    pub(crate) entropy: f64,
    pub(crate) kl_sampler: f64,
    pub(crate) kl_reference: f64,
    /// Importance weights against the sampler, and their squares.
    pub(crate) ratio: f64,
    pub(crate) ratio_squared: f64,
    pub(crate) gradient_sums: [f64; RowLabel::COUNT],
    /// Sums of the loss's own metrics, in the order of their names.
    pub(crate) loss_metrics: Vec<f64>,
    pub(crate) mismatch_max: f64,
    pub(crate) mismatch_sum: f64,
    pub(crate) num_micro_batches: usize,
    /// Predicted cost of this rank's threads.
    pub(crate) worker_costs: Vec<f64>,
    pub(crate) rank_imbalance: f64,
    pub(crate) thread_imbalance: f64,
    pub(crate) reference_seconds: f64,
}

impl Totals {
    /// Adds up what all ranks saw, in the order of the ranks; `None` if one of them abandoned the batch. Seconds stay this
    /// rank's own.
    pub(crate) fn over_ranks(
        self,
        is_abandoned: bool,
        num_loss_metrics: usize,
        ranks: &Ranks,
    ) -> Result<Option<Self>> {
        let mut own = vec![
            f64::from(u8::from(is_abandoned)),
            self.loss,
            self.num_tokens as f64,
            self.num_computed_tokens as f64,
            self.num_trained as f64,
            self.entropy,
            self.kl_sampler,
            self.kl_reference,
            self.ratio,
            self.ratio_squared,
            self.gradient_sums[0],
            self.gradient_sums[1],
            self.mismatch_max,
            self.mismatch_sum,
            self.num_micro_batches as f64,
            self.worker_costs.iter().sum(),
            imbalance(&self.worker_costs),
        ];
        // A rank without a micro-batch has none.
        own.extend((0..num_loss_metrics).map(|index| self.loss_metric(index)));
        let (mut all, mut rank_costs) = (Self::default(), Vec::new());
        for values in ranks.gather_values(&own)? {
            let &[
                is_abandoned,
                loss,
                num_tokens,
                num_computed_tokens,
                num_trained,
                entropy,
                kl_sampler,
                kl_reference,
                ratio,
                ratio_squared,
                gradient_first,
                gradient_second,
                mismatch_max,
                mismatch_sum,
                num_micro_batches,
                cost,
                thread_imbalance,
                ref loss_metrics @ ..,
            ] = values.as_slice()
            else {
                return Err(Error::stage(
                    "adding up a batch",
                    "a rank sent other metrics",
                ));
            };
            if is_abandoned != 0.0 {
                return Ok(None);
            }
            rank_costs.push(cost);
            all.thread_imbalance = all.thread_imbalance.max(thread_imbalance);
            all.add(&Self {
                loss,
                num_tokens: count_of(num_tokens),
                num_computed_tokens: count_of(num_computed_tokens),
                num_trained: count_of(num_trained),
                entropy,
                kl_sampler,
                kl_reference,
                ratio,
                ratio_squared,
                gradient_sums: [gradient_first, gradient_second],
                loss_metrics: loss_metrics.to_vec(),
                mismatch_max,
                mismatch_sum,
                num_micro_batches: count_of(num_micro_batches),
                ..Self::default()
            });
        }
        all.rank_imbalance = imbalance(&rank_costs);
        all.reference_seconds = self.reference_seconds;
        Ok(Some(all))
    }

    pub(crate) fn measure_policy(
        &mut self,
        batch: &MicroBatch,
        output: &head::HeadOutput,
        gradient: &Tensor,
        logp_old: &Tensor,
        logp_reference: Option<&Tensor>,
        loss: &dyn TokenLoss,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let logp = &output.logp;
        let sum = |tensor: &Tensor| tensor.f_sum(Kind::Double);
        let zero = Tensor::f_zeros([], (Kind::Double, logp.device()))?;
        let log_ratio = logp.f_sub(&batch.logp_sampler)?;
        let mismatch = log_ratio.f_abs()?;
        let ratio = log_ratio.f_to_kind(Kind::Double)?.f_exp()?;
        let by_label = Tensor::f_zeros(
            [i64::try_from(RowLabel::COUNT).unwrap_or(i64::MAX)],
            (Kind::Double, logp.device()),
        )?;
        let magnitudes = gradient.f_abs()?.f_to_kind(Kind::Double)?;
        let by_label = by_label.f_index_add(0, &batch.labels, &magnitudes)?;
        let mut sums = vec![
            output
                .entropy
                .as_ref()
                .map_or_else(|| Ok(zero.shallow_clone()), sum)?,
            // Tokens come from the sampler, so its log-probability is the first of the two.
            sum(&k3(&batch.logp_sampler, logp)?)?,
            logp_reference.map_or_else(
                || Ok(zero.shallow_clone()),
                |reference| sum(&k3(logp, reference)?),
            )?,
            sum(&ratio)?,
            sum(&ratio.f_square()?)?,
            by_label.f_get(0)?,
            by_label.f_get(1)?,
            mismatch.f_max()?.f_to_kind(Kind::Double)?,
            sum(&mismatch)?,
        ];
        for (_, metric) in loss.metrics(&batch.tokens(logp, logp_old, logp_reference))? {
            sums.push(metric.f_to_kind(Kind::Double)?);
        }
        // One transfer for all of them.
        let sums = to_host(&Tensor::f_stack(&sums, 0)?)?;
        if let [
            entropy,
            kl_sampler,
            kl_reference,
            ratio,
            ratio_squared,
            gradient_first,
            gradient_second,
            mismatch_max,
            mismatch_sum,
            ref loss_metrics @ ..,
        ] = sums[..]
        {
            self.entropy = entropy;
            self.kl_sampler = kl_sampler;
            self.kl_reference = kl_reference;
            (self.ratio, self.ratio_squared) = (ratio, ratio_squared);
            self.gradient_sums = [gradient_first, gradient_second];
            self.mismatch_max = mismatch_max;
            self.mismatch_sum = mismatch_sum;
            self.loss_metrics = loss_metrics.to_vec();
        }
        Ok(())
    }

    fn loss_metric(&self, index: usize) -> f64 {
        self.loss_metrics.get(index).copied().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.num_tokens += other.num_tokens;
        self.num_computed_tokens += other.num_computed_tokens;
        self.num_trained += other.num_trained;
        self.entropy += other.entropy;
        self.kl_sampler += other.kl_sampler;
        self.kl_reference += other.kl_reference;
        self.ratio += other.ratio;
        self.ratio_squared += other.ratio_squared;
        for (sum, part) in self.gradient_sums.iter_mut().zip(other.gradient_sums) {
            *sum += part;
        }
        let len = self.loss_metrics.len().max(other.loss_metrics.len());
        self.loss_metrics.resize(len, 0.0);
        for (sum, part) in self.loss_metrics.iter_mut().zip(&other.loss_metrics) {
            *sum += part;
        }
        // `f64::max` would drop a NaN.
        if other.mismatch_max > self.mismatch_max || other.mismatch_max.is_nan() {
            self.mismatch_max = other.mismatch_max;
        }
        self.mismatch_sum += other.mismatch_sum;
        self.num_micro_batches += other.num_micro_batches;
        self.reference_seconds += other.reference_seconds;
    }

    /// Means over trained tokens; `names` are those of the loss's own metrics.
    pub(crate) fn means(&self, names: &[&'static str]) -> BatchMetrics {
        let spread = self.num_trained as f64 * self.ratio_squared;
        let mean = |sum: f64| {
            if self.num_trained == 0 {
                0.0
            } else {
                sum / self.num_trained as f64
            }
        };
        BatchMetrics {
            loss: self.loss,
            num_micro_batches: self.num_micro_batches,
            num_tokens: self.num_tokens,
            num_computed_tokens: self.num_computed_tokens,
            padding_share: self.num_computed_tokens.saturating_sub(self.num_tokens) as f64
                / self.num_computed_tokens.max(1) as f64,
            num_trained: self.num_trained,
            entropy: mean(self.entropy),
            kl_sampler: mean(self.kl_sampler),
            kl_reference: mean(self.kl_reference),
            effective_sample_size: if spread > 0.0 {
                self.ratio * self.ratio / spread
            } else {
                0.0
            },
            gradient_sums: self.gradient_sums,
            loss_metrics: names
                .iter()
                .enumerate()
                .map(|(index, name)| (*name, mean(self.loss_metric(index))))
                .collect(),
            mismatch_max_nats: self.mismatch_max,
            mismatch_mean_nats: mean(self.mismatch_sum),
            num_compared: self.num_trained,
            rank_imbalance: self.rank_imbalance,
            thread_imbalance: self.thread_imbalance,
            reference_seconds: self.reference_seconds,
        }
    }
}

/// How far the largest of some costs exceeds their mean, as a share of the mean; 0 without any cost.
fn imbalance(costs: &[f64]) -> f64 {
    let mean = costs.iter().sum::<f64>() / costs.len().max(1) as f64;
    let largest = costs.iter().copied().fold(0.0, f64::max);
    if mean > 0.0 {
        largest / mean - 1.0
    } else {
        0.0
    }
}
