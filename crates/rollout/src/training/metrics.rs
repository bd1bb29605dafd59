//! Metrics of a step's episodes.

use asyncthink_protocol::FormatError;

use super::rewarded::RewardedEpisode;
use crate::agent::AgentRecord;
use crate::episode::Episode;

/// Means over the episodes of a step; the deterministic part of its metrics.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct EpisodeMetrics {
    /// Mean reward.
    pub reward: f64,
    /// Mean `R_A`; 0 counted for format errors.
    pub reward_accuracy: f64,
    /// Mean `R_eta` as paid; 0 counted for format errors.
    pub reward_concurrency: f64,
    /// Share of episodes that found everything asked for.
    pub all_correct: f64,
    /// Share of episodes without a format error.
    pub valid: f64,
    /// Mean `eta / c` of valid episodes.
    pub eta_ratio: Option<f64>,
    /// The same as the reward counts it.
    pub eta_ratio_rewarded: Option<f64>,
    /// Mean critical-path latency of valid episodes, in decoding steps.
    pub latency_tokens: Option<f64>,
    /// Mean Forks of valid episodes: one that ends at its first error has not made all of its own.
    pub forks_per_query: Option<f64>,
    /// Mean Joins of valid episodes.
    pub joins_per_query: Option<f64>,
    /// Mean number of workers without a complete RETURN, of valid episodes.
    pub empty_returns_per_query: Option<f64>,
    /// Mean number of workers that were still at work when the organizer ended, of valid episodes.
    pub cancelled_workers_per_query: Option<f64>,
    /// Mean number of workers that were never joined, of valid episodes: what they wrote was not read.
    pub unread_workers_per_query: Option<f64>,
    /// Mean number of workers that handed over nothing, of valid episodes.
    pub idle_workers_per_query: Option<f64>,
    /// Mean share of the critical path that the organizer waits at Joins, of valid episodes.
    pub join_wait_share: Option<f64>,
    /// Share of the sub-queries of valid episodes that repeat the query word for word.
    pub copied_sub_queries: Option<f64>,
    /// Share of the attempts in valid episodes that another agent of the episode made too; null where the task cannot tell.
    pub repeated_attempts: Option<f64>,
    /// Share of the agents that completed an ANSWER or a RETURN and did not end their sequence after it.
    pub missing_eos: Option<f64>,
    /// Mean of what is taken off an episode's reward, for overlong agents and for the distance to the reference.
    pub reward_penalty: f64,
    /// Share of the agents that a token limit cut before their ANSWER or RETURN was complete.
    pub truncated: f64,
    /// Mean tokens that all agents of a valid episode decoded.
    pub decoded_tokens_per_query: Option<f64>,
    /// Mean negative log-probability of all decoded tokens as sampled, in nats: an estimate of the policy's entropy that
    /// costs nothing and leaves no row out.
    pub sampled_nll_nats: f64,
    /// Format errors by type, as counts.
    pub format_errors: std::collections::BTreeMap<&'static str, usize>,
    /// Episodes.
    pub num_episodes: usize,
    /// Tokens decoded by all agents of all episodes.
    pub decoded_tokens: usize,
}

impl EpisodeMetrics {
    /// Metrics of episodes; `None` without any.
    pub fn of(episodes: &[RewardedEpisode]) -> Option<Self> {
        Self::of_summaries(&EpisodeSummary::of_all(episodes))
    }

    /// Metrics of the summaries of all ranks, in the order of the ranks, and so in that of the prompts: the sums are those of a single
    /// rank, to the bit. `None` without any.
    pub fn of_summaries(episodes: &[EpisodeSummary]) -> Option<Self> {
        if episodes.is_empty() {
            return None;
        }
        let mean = |value: &dyn Fn(&EpisodeSummary) -> f64| {
            episodes.iter().map(value).sum::<f64>() / episodes.len() as f64
        };
        let valid: Vec<&EpisodeSummary> = episodes.iter().filter(|one| one.is_valid).collect();
        let mean_valid = |value: &dyn Fn(&EpisodeSummary) -> f64| {
            let sum: f64 = valid.iter().map(|summary| value(summary)).sum();
            (!valid.is_empty()).then(|| sum / valid.len() as f64)
        };
        let share_of_valid =
            |numerator: &dyn Fn(&EpisodeSummary) -> f64,
             denominator: &dyn Fn(&EpisodeSummary) -> f64| {
                let sum = |value: &dyn Fn(&EpisodeSummary) -> f64| -> f64 {
                    valid.iter().map(|summary| value(summary)).sum()
                };
                let whole = sum(denominator);
                (whole > 0.0).then(|| sum(numerator) / whole)
            };
        // Every code is listed, so that lines of all steps have the same keys.
        let format_errors = FormatError::CODES
            .into_iter()
            .map(|code| {
                let has_it =
                    |one: &&EpisodeSummary| one.format_error.is_some_and(|it| it.code() == code);
                (code, episodes.iter().filter(has_it).count())
            })
            .collect();
        let decoded_tokens: usize = episodes.iter().map(|summary| summary.decoded_tokens).sum();
        let logprobs: f64 = episodes.iter().map(|summary| summary.sum_of_logprobs).sum();
        Some(Self {
            reward: mean(&|one| one.reward),
            reward_accuracy: mean(&|one| one.reward_accuracy),
            reward_concurrency: mean(&|one| one.reward_concurrency),
            all_correct: mean(&|one| f64::from(u8::from(one.is_valid && one.is_complete))),
            valid: valid.len() as f64 / episodes.len() as f64,
            eta_ratio: mean_valid(&|one| one.eta_ratio),
            eta_ratio_rewarded: mean_valid(&|one| one.eta_ratio_rewarded),
            latency_tokens: mean_valid(&|one| one.latency_tokens),
            forks_per_query: mean_valid(&|one| one.num_forks),
            joins_per_query: mean_valid(&|one| one.num_joins),
            empty_returns_per_query: mean_valid(&|one| one.num_empty_returns),
            cancelled_workers_per_query: mean_valid(&|one| one.num_cancelled_workers),
            unread_workers_per_query: mean_valid(&|one| one.num_unread_workers),
            idle_workers_per_query: mean_valid(&|one| one.num_idle_workers),
            join_wait_share: mean_valid(&|one| one.join_wait_share),
            copied_sub_queries: share_of_valid(&|one| one.num_copied_sub_queries, &|one| {
                one.num_forks
            }),
            repeated_attempts: share_of_valid(&|one| one.num_repeated_attempts, &|one| {
                one.num_attempts
            }),
            missing_eos: share_of_valid(&|one| one.num_missing_eos, &|one| {
                one.num_completed_agents
            }),
            reward_penalty: mean(&|one| one.penalty),
            truncated: mean(&|one| one.num_truncated) / mean(&|one| one.num_forks + 1.0),
            decoded_tokens_per_query: mean_valid(&|one| one.decoded_tokens as f64),
            sampled_nll_nats: -logprobs / decoded_tokens.max(1) as f64,
            format_errors,
            num_episodes: episodes.len(),
            decoded_tokens,
        })
    }
}

/// Numbers of one episode that metrics are made of, as ranks send them to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EpisodeSummary {
    is_valid: bool,
    /// Everything asked for was found.
    is_complete: bool,
    format_error: Option<FormatError>,
    reward: f64,
    reward_accuracy: f64,
    reward_concurrency: f64,
    eta_ratio: f64,
    eta_ratio_rewarded: f64,
    latency_tokens: f64,
    num_forks: f64,
    num_joins: f64,
    num_empty_returns: f64,
    num_cancelled_workers: f64,
    num_unread_workers: f64,
    num_idle_workers: f64,
    join_wait_share: f64,
    num_copied_sub_queries: f64,
    num_attempts: f64,
    num_repeated_attempts: f64,
    num_completed_agents: f64,
    num_missing_eos: f64,
    num_truncated: f64,
    penalty: f64,
    decoded_tokens: usize,
    sum_of_logprobs: f64,
}

impl EpisodeSummary {
    /// Summaries of episodes, in their order.
    pub fn of_all(episodes: &[RewardedEpisode]) -> Vec<Self> {
        episodes.iter().map(Self::of).collect()
    }

    fn of(rewarded: &RewardedEpisode) -> Self {
        let RewardedEpisode { graded, reward, .. } = rewarded;
        let episode = &graded.episode;
        let concurrency = graded.concurrency;
        let attempts = graded.attempts.unwrap_or_default();
        Self {
            is_valid: concurrency.is_some(),
            is_complete: graded.is_complete(),
            format_error: episode.format_error().copied(),
            reward: reward.total,
            reward_accuracy: reward.accuracy,
            reward_concurrency: reward.concurrency,
            eta_ratio: concurrency.map_or(0.0, |concurrency| concurrency.eta_ratio),
            eta_ratio_rewarded: rewarded.rewarded_eta_ratio.unwrap_or_default(),
            latency_tokens: concurrency
                .map_or(0.0, |concurrency| concurrency.latency_tokens as f64),
            num_forks: episode.num_forks() as f64,
            num_joins: episode.num_joins as f64,
            num_empty_returns: episode.num_empty_returns() as f64,
            num_cancelled_workers: episode.num_cancelled_workers() as f64,
            num_unread_workers: episode.num_unread_workers() as f64,
            num_idle_workers: episode.num_idle_workers() as f64,
            join_wait_share: episode.join_wait_share().unwrap_or_default(),
            num_copied_sub_queries: episode.num_copied_sub_queries() as f64,
            num_attempts: attempts.num_attempts as f64,
            num_repeated_attempts: attempts.num_repeated as f64,
            num_completed_agents: episode.num_completed_agents() as f64,
            num_missing_eos: episode.num_missing_eos() as f64,
            num_truncated: episode.num_truncated_agents() as f64,
            penalty: rewarded.penalty + rewarded.kl_penalty,
            decoded_tokens: episode.decoded_tokens(),
            sum_of_logprobs: sum_of_logprobs(episode),
        }
    }
}

fn sum_of_logprobs(episode: &Episode) -> f64 {
    // Ids that were not decoded have a log-probability of 0.
    episode
        .agents()
        .flat_map(AgentRecord::logprobs)
        .map(|logprob| f64::from(*logprob))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_survives_the_journey() {
        let summary = EpisodeSummary {
            is_valid: true,
            format_error: Some(FormatError::NoAnswer),
            reward: 0.1 + 0.2,
            num_forks: 3.0,
            sum_of_logprobs: -1.0 / 3.0,
            ..EpisodeSummary::default()
        };
        for summary in [summary, EpisodeSummary::default()] {
            let json = serde_json::to_vec(&summary).unwrap();
            let read: EpisodeSummary = serde_json::from_slice(&json).unwrap();
            assert_eq!(read, summary);
        }
    }
}
