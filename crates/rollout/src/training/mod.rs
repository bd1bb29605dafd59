//! Episodes as training data: rewards, advantages, training rows, Parquet records, metrics.

mod metrics;
mod rewarded;

use asyncthink_algorithms::{AdvantageEstimator, Group};
use asyncthink_data::parquet::{EpisodeRecord, Role};
use asyncthink_data::{EpisodeIndex, Tokenizer, TrainingRow};

pub use metrics::{EpisodeMetrics, EpisodeSummary};
pub use rewarded::{RewardedEpisode, reward_episode};

use crate::agent::AgentRecord;
use crate::error::Result;

/// Gives every episode the advantage of its reward in its group: `episodes` holds group after group of `group_size`.
///
/// Episodes with a format error stay in their group. Returns how many groups earned one reward throughout, from which
/// there is nothing to learn.
///
/// # Panics
/// If `group_size` is below 2 or does not divide the number of episodes; the recipe's checks rule that out.
pub fn assign_advantages(
    episodes: &mut [RewardedEpisode],
    group_size: usize,
    advantage: &dyn AdvantageEstimator,
) -> usize {
    assert!(
        episodes.len().is_multiple_of(group_size),
        "groups must be whole"
    );
    let mut num_constant = 0;
    for group in episodes.chunks_exact_mut(group_size) {
        let rewards: Vec<f64> = group.iter().map(|episode| episode.reward.total).collect();
        let rewards = Group::new(&rewards).expect("a group has at least two episodes");
        num_constant += usize::from(rewards.is_constant());
        for (episode, advantage) in group.iter_mut().zip(rewards.advantages(advantage)) {
            episode.advantage = advantage;
        }
    }
    num_constant
}

/// The training rows of `episodes`: one per agent that decoded anything, organizer first.
///
/// Ids are those that were decoded, never tokenised again; the mask is one on decoded ids and zero on prompts and injected
/// text. All rows of an episode carry its index and its advantage.
///
/// # Errors
/// When a row is not consistent.
pub fn training_rows(episodes: &[RewardedEpisode]) -> Result<Vec<TrainingRow>> {
    let mut rows = Vec::new();
    for (index, rewarded) in episodes.iter().enumerate() {
        let index = EpisodeIndex(u32::try_from(index).unwrap_or(u32::MAX));
        for record in rewarded.graded.episode.agents() {
            if record.num_decoded() > 0 {
                rows.push(training_row(record, rewarded.advantage, index)?);
            }
        }
    }
    Ok(rows)
}

fn training_row(
    record: &AgentRecord,
    advantage: f64,
    episode: EpisodeIndex,
) -> Result<TrainingRow> {
    #[expect(clippy::cast_possible_truncation, reason = "rows hold f32")]
    let advantage = advantage as f32;
    Ok(TrainingRow::policy(
        record.ids().to_vec(),
        record.decoded().to_vec(),
        record.logprobs().to_vec(),
        advantage,
        episode,
    )?)
}

/// The rows of `episodes/step_N.parquet`: one per agent, organizer first.
pub fn episode_records(
    step: u64,
    episodes: &[RewardedEpisode],
    tokenizer: &Tokenizer,
) -> Vec<EpisodeRecord> {
    let mut records = Vec::new();
    for rewarded in episodes {
        let episode = &rewarded.graded.episode;
        let query = &episode.query;
        records.push(record(step, rewarded, &episode.organizer, query, tokenizer));
        for (index, worker) in episode.workers.iter().enumerate() {
            records.push(EpisodeRecord {
                role: Role::Worker,
                worker_index: u32::try_from(index).ok(),
                sub_query_id: Some(worker.sub_query_id.0),
                worker_end: Some(worker.end.name().to_owned()),
                ..record(step, rewarded, &worker.record, &worker.sub_query, tokenizer)
            });
        }
    }
    records
}

fn record(
    step: u64,
    rewarded: &RewardedEpisode,
    agent: &AgentRecord,
    query: &str,
    tokenizer: &Tokenizer,
) -> EpisodeRecord {
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let RewardedEpisode { graded, reward, .. } = rewarded;
    let episode = &graded.episode;
    EpisodeRecord {
        step,
        prompt_index: episode.prompt_index as u64,
        sample_index: count(episode.sample_index),
        role: Role::Organizer,
        worker_index: None,
        sub_query_id: None,
        worker_end: None,
        query: query.to_owned(),
        ids: agent.ids().to_vec(),
        prompt_len: count(agent.prompt_tokens()),
        decoded: agent.decoded().to_vec(),
        logprobs: agent.logprobs().to_vec(),
        text: tokenizer.decode_continuation(&agent.ids()[agent.prompt_tokens()..]),
        answer: episode.answer().map(str::to_owned),
        error: episode.format_error().map(|error| error.code().to_owned()),
        reward: reward.total,
        reward_accuracy: reward.accuracy,
        reward_concurrency: reward.concurrency,
        advantage: rewarded.advantage,
        num_correct: count(graded.num_correct),
        num_required: count(graded.num_required),
        latency_tokens: graded
            .concurrency
            .map(|concurrency| concurrency.latency_tokens),
        eta: graded.concurrency.map(|concurrency| concurrency.eta),
        eta_ratio: graded.concurrency.map(|concurrency| concurrency.eta_ratio),
        num_forks: count(episode.num_forks()),
        num_joins: count(episode.num_joins),
    }
}
