//! What a GRPO step writes to `metrics.jsonl` and shows.

use std::collections::BTreeMap;

use asyncthink_gradient::BatchMetrics;
use asyncthink_recipe::GrpoMetric;
use serde::Serialize;

use crate::observer::{Observer, StepReport};
use asyncthink_metrics::{Phase, Timing};
use asyncthink_rollout::EpisodeMetrics;

/// A line of `grpo/metrics.jsonl`.
#[derive(Debug, Serialize)]
pub(super) struct GrpoLine {
    pub(super) step: u64,
    pub(super) epoch: u64,
    #[serde(flatten)]
    pub(super) episodes: EpisodeMetrics,
    pub(super) constant_groups: usize,
    pub(super) lambda: f64,
    pub(super) learning_rate: f64,
    #[serde(flatten)]
    pub(super) update: UpdateMetrics,
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

/// What the updates of a step measured; means over the updates where there are several.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct UpdateMetrics {
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    /// This and the other means over tokens are null where no row had a gradient to compute.
    pub(super) clip_share: Option<f64>,
    pub(super) kl_sampler: Option<f64>,
    /// Null without a reference model.
    pub(super) kl_reference: Option<f64>,
    /// Of the first update, as are the mismatches: later ones differ because the policy has moved.
    pub(super) entropy: Option<f64>,
    pub(super) logprob_mismatch_max_nats: Option<f64>,
    pub(super) logprob_mismatch_mean_nats: Option<f64>,
    pub(super) num_rows: usize,
    pub(super) num_tokens: usize,
    pub(super) num_trained_tokens: usize,
    pub(super) num_micro_batches: usize,
    pub(super) padding_share: f64,
    /// Means of the loss's own metrics besides `clip_share`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) loss_metrics: BTreeMap<&'static str, f64>,
}

impl UpdateMetrics {
    /// Takes over what only the first update tells.
    pub(super) fn start(&mut self, metrics: &BatchMetrics) {
        self.entropy = (metrics.num_trained > 0).then_some(metrics.entropy);
        // Rows without a gradient may have been compared as well.
        if metrics.num_compared > 0 {
            self.logprob_mismatch_max_nats = Some(metrics.mismatch_max_nats);
            self.logprob_mismatch_mean_nats = Some(metrics.mismatch_mean_nats);
        }
        self.num_tokens = metrics.num_tokens;
        self.padding_share = metrics.padding_share;
        self.num_trained_tokens = metrics.num_trained;
        self.num_micro_batches = metrics.num_micro_batches;
    }

    pub(super) fn add(
        &mut self,
        metrics: &BatchMetrics,
        has_reference: bool,
        grad_norm: f64,
        num_updates: f64,
    ) {
        self.loss += metrics.loss / num_updates;
        self.grad_norm += grad_norm / num_updates;
        if metrics.num_trained > 0 {
            for &(name, mean) in &metrics.loss_metrics {
                let sum = match name {
                    "clip_share" => self.clip_share.get_or_insert(0.0),
                    _ => self.loss_metrics.entry(name).or_default(),
                };
                *sum += mean / num_updates;
            }
            *self.kl_sampler.get_or_insert(0.0) += metrics.kl_sampler / num_updates;
            if has_reference {
                *self.kl_reference.get_or_insert(0.0) += metrics.kl_reference / num_updates;
            }
        }
    }
}

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
