//! What a GRPO step writes to `metrics.jsonl` and shows.

use std::collections::BTreeMap;

use asyncthink_data::RowLabel;
use asyncthink_gradient::BatchMetrics;
use asyncthink_recipe::GrpoMetric;
use serde::Serialize;

use crate::observer::{Observer, StepReport};
use asyncthink_metrics::{Phase, Timing};
use asyncthink_rollout::{EpisodeMetrics, ORGANIZER_ROWS, WORKER_ROWS};

/// A line of `grpo/metrics.jsonl`.
#[derive(Debug, Serialize)]
pub(super) struct GrpoLine {
    pub(super) step: u64,
    pub(super) epoch: u64,
    #[serde(flatten)]
    pub(super) episodes: EpisodeMetrics,
    pub(super) constant_groups: usize,
    /// Groups trained on, and rounds of sampling; with `max_sampling_rounds` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) num_groups: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sampling_rounds: Option<usize>,
    pub(super) lambda: f64,
    pub(super) learning_rate: f64,
    #[serde(flatten)]
    pub(super) update: UpdateMetrics,
    /// Metrics of validation problems, at steps that were evaluated; absent from the other lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) validation: Option<EpisodeMetrics>,
    pub(super) timing: Timing,
}

impl GrpoLine {
    /// What checkpoints may be compared by. Rewards of steps with different weights of concurrency cannot be, so that each is
    /// taken as `final_lambda` would have it, the weight of the last step.
    pub(super) fn metrics_of_checkpoint(
        &self,
        final_lambda: f64,
    ) -> [(GrpoMetric, Option<f64>); 4] {
        let episodes = &self.episodes;
        let reward = episodes.reward + (final_lambda - self.lambda) * episodes.reward_concurrency;
        [
            (GrpoMetric::Reward, Some(reward)),
            (GrpoMetric::RewardAccuracy, Some(episodes.reward_accuracy)),
            (GrpoMetric::AllCorrect, Some(episodes.all_correct)),
            (GrpoMetric::EtaRatio, episodes.eta_ratio),
        ]
    }
}

/// What the updates of a step measured; means over the updates that measured anything, where there are several.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct UpdateMetrics {
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    /// Updates left out because their gradient was zero.
    pub(super) num_skipped_updates: usize,
    /// This and the other means over tokens are null where no row had a gradient to compute.
    pub(super) clip_share: Option<f64>,
    pub(super) kl_sampler: Option<f64>,
    /// Null without a reference model.
    pub(super) kl_reference: Option<f64>,
    pub(super) effective_sample_size: Option<f64>,
    /// Share of the sum of `|dL/dlogp|` by role.
    pub(super) gradient_share: BTreeMap<&'static str, Option<f64>>,
    /// Of the first pass.
    pub(super) entropy: Option<f64>,
    /// Of the first update, as is the mean: later ones differ because the policy has moved.
    pub(super) logprob_mismatch_max_nats: Option<f64>,
    pub(super) logprob_mismatch_mean_nats: Option<f64>,
    pub(super) num_rows: usize,
    pub(super) num_tokens: usize,
    /// Fewer than `num_tokens` where rows share their beginning.
    pub(super) num_computed_tokens: usize,
    pub(super) num_trained_tokens: usize,
    pub(super) num_micro_batches: usize,
    pub(super) padding_share: f64,
    pub(super) rank_imbalance: f64,
    pub(super) thread_imbalance: f64,
    /// Means of the loss's own metrics besides `clip_share`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) loss_metrics: BTreeMap<&'static str, f64>,
}

/// Sums over the updates of a step.
pub(super) struct UpdateSums {
    metrics: UpdateMetrics,
    has_reference: bool,
    num_updates: f64,
    /// Updates that computed a token.
    num_measured: f64,
    kl_sampler: f64,
    kl_reference: f64,
    effective_sample_size: f64,
    /// Over tokens of the first pass.
    entropy: f64,
    padding: f64,
    gradient_sums: [f64; RowLabel::COUNT],
    loss_metrics: BTreeMap<&'static str, f64>,
}

impl UpdateSums {
    pub(super) fn new(has_reference: bool) -> Self {
        Self {
            metrics: UpdateMetrics::default(),
            has_reference,
            num_updates: 0.0,
            num_measured: 0.0,
            kl_sampler: 0.0,
            kl_reference: 0.0,
            effective_sample_size: 0.0,
            entropy: 0.0,
            padding: 0.0,
            gradient_sums: [0.0; RowLabel::COUNT],
            loss_metrics: BTreeMap::new(),
        }
    }

    /// Takes over what only the first update tells.
    pub(super) fn start(&mut self, metrics: &BatchMetrics) {
        // Rows without a gradient may have been compared as well.
        if metrics.num_compared > 0 {
            self.metrics.logprob_mismatch_max_nats = Some(metrics.mismatch_max_nats);
            self.metrics.logprob_mismatch_mean_nats = Some(metrics.mismatch_mean_nats);
        }
        self.metrics.rank_imbalance = metrics.rank_imbalance;
        self.metrics.thread_imbalance = metrics.thread_imbalance;
    }

    pub(super) fn add(
        &mut self,
        metrics: &BatchMetrics,
        is_first_pass: bool,
        grad_norm: f64,
        has_signal: bool,
    ) {
        self.num_updates += 1.0;
        self.metrics.loss += metrics.loss;
        self.metrics.grad_norm += grad_norm;
        self.metrics.num_skipped_updates += usize::from(!has_signal);
        if is_first_pass {
            self.metrics.num_tokens += metrics.num_tokens;
            self.metrics.num_computed_tokens += metrics.num_computed_tokens;
            self.metrics.num_trained_tokens += metrics.num_trained;
            self.metrics.num_micro_batches += metrics.num_micro_batches;
            self.entropy += metrics.entropy * metrics.num_trained as f64;
            self.padding += metrics.padding_share * metrics.num_tokens as f64;
        }
        if metrics.num_trained > 0 {
            self.num_measured += 1.0;
            for &(name, mean) in &metrics.loss_metrics {
                *self.loss_metrics.entry(name).or_default() += mean;
            }
            self.kl_sampler += metrics.kl_sampler;
            self.kl_reference += metrics.kl_reference;
            self.effective_sample_size += metrics.effective_sample_size;
            for (sum, part) in self.gradient_sums.iter_mut().zip(metrics.gradient_sums) {
                *sum += part;
            }
        }
    }

    /// The means.
    pub(super) fn metrics(self) -> UpdateMetrics {
        let mut metrics = self.metrics;
        metrics.loss /= self.num_updates.max(1.0);
        metrics.grad_norm /= self.num_updates.max(1.0);
        metrics.padding_share = self.padding / metrics.num_tokens.max(1) as f64;
        let num_trained = metrics.num_trained_tokens as f64;
        metrics.entropy = (num_trained > 0.0).then(|| self.entropy / num_trained);
        let mean = |sum: f64| (self.num_measured > 0.0).then(|| sum / self.num_measured);
        metrics.kl_sampler = mean(self.kl_sampler);
        metrics.kl_reference = mean(self.kl_reference).filter(|_| self.has_reference);
        metrics.effective_sample_size = mean(self.effective_sample_size);
        for (name, sum) in self.loss_metrics {
            match name {
                "clip_share" => metrics.clip_share = mean(sum),
                _ => metrics
                    .loss_metrics
                    .extend(mean(sum).map(|mean| (name, mean))),
            }
        }
        let total: f64 = self.gradient_sums.iter().sum();
        metrics.gradient_share = ROLES
            .into_iter()
            .map(|(name, label)| {
                let sum = self.gradient_sums[label.index()];
                (name, (total > 0.0).then(|| sum / total))
            })
            .collect();
        metrics
    }
}

/// Names of the kinds of rows.
const ROLES: [(&str, RowLabel); RowLabel::COUNT] =
    [("organizer", ORGANIZER_ROWS), ("worker", WORKER_ROWS)];

/// Shows the metrics of a step.
pub(super) fn report(observer: &mut dyn Observer, line: &GrpoLine, num_steps: u64) {
    let (episodes, update) = (&line.episodes, &line.update);
    let tokens_per_second = |phase| line.timing.tokens_per_second.get(&phase).copied();
    let figures: Vec<(&'static str, f64)> = [
        ("reward", Some(episodes.reward)),
        ("accuracy", Some(episodes.reward_accuracy)),
        ("all_correct", Some(episodes.all_correct)),
        ("eta_ratio", episodes.eta_ratio),
        ("latency_tokens", episodes.latency_tokens),
        ("forks_per_query", episodes.forks_per_query),
        ("format_errors", Some(1.0 - episodes.valid)),
        (
            "validation_accuracy",
            line.validation.as_ref().map(|of| of.reward_accuracy),
        ),
        ("kl_reference", update.kl_reference),
        ("entropy", update.entropy),
        ("clip_share", update.clip_share),
        (
            "logprob_mismatch_max_nats",
            update.logprob_mismatch_max_nats,
        ),
        (
            "rollout_tokens_per_second",
            tokens_per_second(Phase::Rollout),
        ),
        ("train_tokens_per_second", tokens_per_second(Phase::Train)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect();
    observer.step(&StepReport {
        step: line.step,
        num_steps,
        figures: &figures,
    });
}
