//! What a GRPO step writes to `metrics.jsonl` and shows.

use asyncthink_recipe::GrpoMetric;
use serde::Serialize;

use crate::episode_figures::EpisodeFigures;
use crate::figures::BatchFigures;
use crate::metrics::{Phase, Timing};
use crate::observer::{Observer, StepReport};

/// A line of `grpo/metrics.jsonl`.
#[derive(Debug, Serialize)]
pub(crate) struct GrpoLine {
    pub(crate) step: u64,
    pub(crate) epoch: u64,
    #[serde(flatten)]
    pub(crate) episodes: EpisodeFigures,
    pub(crate) constant_groups: usize,
    pub(crate) lambda: f64,
    pub(crate) learning_rate: f64,
    #[serde(flatten)]
    pub(crate) update: UpdateFigures,
    pub(crate) timing: Timing,
}

impl GrpoLine {
    /// What checkpoints may be compared by.
    pub(crate) fn figures_of_checkpoint(&self) -> [(GrpoMetric, Option<f64>); 4] {
        let episodes = &self.episodes;
        [
            (GrpoMetric::Reward, Some(episodes.reward)),
            (GrpoMetric::RewardAccuracy, Some(episodes.reward_accuracy)),
            (GrpoMetric::AllCorrect, Some(episodes.all_correct)),
            (GrpoMetric::EtaRatio, episodes.eta_ratio),
        ]
    }
}

/// What the updates of a step measured; means over the updates where there are several.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct UpdateFigures {
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    /// This and the other means over tokens are null where no row had a gradient to compute.
    pub(crate) clip_share: Option<f64>,
    pub(crate) kl_sampler: Option<f64>,
    /// Null without a reference model.
    pub(crate) kl_reference: Option<f64>,
    /// Of the first update, as are the mismatches: later ones differ because the policy has moved.
    pub(crate) entropy: Option<f64>,
    pub(crate) logprob_mismatch_max_nats: Option<f64>,
    pub(crate) logprob_mismatch_mean_nats: Option<f64>,
    pub(crate) num_rows: usize,
    pub(crate) num_tokens: usize,
    pub(crate) num_trained_tokens: usize,
    pub(crate) num_micro_batches: usize,
    pub(crate) padding_share: f64,
}

impl UpdateFigures {
    /// Takes over what only the first update tells.
    pub(crate) fn start(&mut self, figures: &BatchFigures) {
        self.entropy = (figures.num_trained > 0).then_some(figures.entropy);
        // Rows without a gradient may have been compared as well.
        if figures.num_compared > 0 {
            self.logprob_mismatch_max_nats = Some(figures.mismatch_max_nats);
            self.logprob_mismatch_mean_nats = Some(figures.mismatch_mean_nats);
        }
        self.num_tokens = figures.num_tokens;
        self.padding_share = figures.padding_share;
        self.num_trained_tokens = figures.num_trained;
        self.num_micro_batches = figures.num_micro_batches;
    }

    pub(crate) fn add(
        &mut self,
        figures: &BatchFigures,
        has_reference: bool,
        grad_norm: f64,
        num_updates: f64,
    ) {
        self.loss += figures.loss / num_updates;
        self.grad_norm += grad_norm / num_updates;
        if figures.num_trained > 0 {
            *self.clip_share.get_or_insert(0.0) += figures.clip_share / num_updates;
            *self.kl_sampler.get_or_insert(0.0) += figures.kl_sampler / num_updates;
            if has_reference {
                *self.kl_reference.get_or_insert(0.0) += figures.kl_reference / num_updates;
            }
        }
    }
}

/// Shows the figures of a step.
pub(crate) fn report(observer: &mut dyn Observer, line: &GrpoLine, num_steps: u64) {
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
