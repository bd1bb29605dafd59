//! Episodes as training data: rewards, advantages, training rows, Parquet records, metrics.

mod advantages;
mod metrics;
mod rewarded;

use asyncthink_data::parquet::{EpisodeRecord, Role};
use asyncthink_data::{EpisodeIndex, RowLabel, Tokenizer, TrainingRow};

pub use advantages::{AdvantageRule, assign_advantages};
pub use metrics::{EpisodeMetrics, EpisodeSummary};
pub use rewarded::{OverlongRule, RewardedEpisode, reward_episode};

use crate::agent::AgentRecord;
use crate::error::Result;

/// Kind of the rows of organizers.
pub const ORGANIZER_ROWS: RowLabel = RowLabel::First;

/// Kind of the rows of workers.
pub const WORKER_ROWS: RowLabel = RowLabel::Second;

/// The training rows of `episodes`: one per agent that decoded anything, organizer first.
///
/// Ids are those that were decoded, never tokenised again; the mask is one on decoded ids and zero on prompts and injected
/// text. All rows of an episode carry its index and its advantage.
///
/// # Errors
/// When a row is not consistent.
pub fn training_rows(episodes: &[RewardedEpisode]) -> Result<Vec<TrainingRow>> {
    let rows = rows_of(episodes.iter())?;
    Ok(rows.into_iter().map(|(row, _)| row).collect())
}

/// As [`training_rows`]; with `masks_truncated` the rows of agents that a token limit cut come apart, as the second part: those of all
/// agents where it cut the organizer.
///
/// # Errors
/// When a row is not consistent.
pub fn rows_to_train(
    episodes: &[&RewardedEpisode],
    masks_truncated: bool,
) -> Result<(Vec<TrainingRow>, Vec<TrainingRow>)> {
    let (masked, trained): (Vec<_>, Vec<_>) = rows_of(episodes.iter().copied())?
        .into_iter()
        .partition(|(_, is_truncated)| masks_truncated && *is_truncated);
    let rows = |rows: Vec<(TrainingRow, bool)>| rows.into_iter().map(|(row, _)| row).collect();
    Ok((rows(trained), rows(masked)))
}

/// Rows, and whether a token limit cut their agent or its organizer.
fn rows_of<'a>(
    episodes: impl Iterator<Item = &'a RewardedEpisode>,
) -> Result<Vec<(TrainingRow, bool)>> {
    let mut rows = Vec::new();
    for (index, rewarded) in episodes.enumerate() {
        let index = EpisodeIndex(u32::try_from(index).unwrap_or(u32::MAX));
        let episode = &rewarded.graded.episode;
        let is_cut = episode.organizer.is_truncated();
        let organizer = [(&episode.organizer, rewarded.advantage, ORGANIZER_ROWS)];
        let workers = episode.workers.iter();
        let workers =
            workers.map(|worker| (&worker.record, rewarded.worker_advantage, WORKER_ROWS));
        for (record, advantage, label) in organizer.into_iter().chain(workers) {
            if record.num_decoded() > 0 {
                let row = training_row(record, advantage, index)?.with_label(label);
                rows.push((row, is_cut || record.is_truncated()));
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
                advantage: rewarded.worker_advantage,
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
