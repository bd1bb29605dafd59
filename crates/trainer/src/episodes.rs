//! From sampled episodes to rewards, advantages, training rows and Parquet.

use asyncthink_data::parquet::{EpisodeRecord, Role};
use asyncthink_data::{EpisodeIndex, Tokenizer, TrainingRow};
use asyncthink_protocol::Concurrency;
use asyncthink_rollout::{AgentRecord, Episode};
use asyncthink_tasks::Problem;

use crate::advantage::{Advantage, Group};
use crate::error::{Error, Result};
use crate::reward::{EpisodeScore, RewardParts, RewardRule};

/// An episode with everything that its reward rests on.
#[derive(Clone, Debug)]
pub struct GradedEpisode {
    /// What organizer and workers did.
    pub episode: Episode,
    /// Different correct items of the answer; 0 for a format error.
    pub num_correct: usize,
    /// Items that the problem asks for.
    pub num_required: usize,
    /// Latency and concurrency as the paper has them; `None` for a format error.
    pub concurrency: Option<Concurrency>,
    /// `eta / c` as rewarded, which may leave out workers that nobody joined; `None` for a format error.
    pub rewarded_eta_ratio: Option<f64>,
    /// The reward.
    pub reward: RewardParts,
    /// The advantage, one for the organizer and all workers.
    pub advantage: f64,
}

/// Grades an episode and computes its reward; the advantage is 0 until its group is known. `count_unjoined` is about the
/// reward: the figures of the episode count every worker.
pub fn grade_episode(
    episode: Episode,
    problem: &Problem,
    rule: &RewardRule,
    count_unjoined: bool,
) -> GradedEpisode {
    let concurrency = episode
        .timeline
        .as_ref()
        .map(|timeline| timeline.concurrency(true));
    let rewarded_eta_ratio = episode
        .timeline
        .as_ref()
        .map(|timeline| timeline.concurrency(count_unjoined).eta_ratio);
    let (score, num_correct) = match (episode.answer(), rewarded_eta_ratio) {
        (Some(answer), Some(eta_ratio)) => {
            let grade = problem.grade(answer);
            let score = EpisodeScore::Valid {
                accuracy: grade.reward,
                eta_ratio,
            };
            (score, grade.num_correct)
        }
        _ => (EpisodeScore::FormatError, 0),
    };
    GradedEpisode {
        num_correct,
        num_required: problem.required(),
        concurrency,
        rewarded_eta_ratio,
        reward: rule.reward(score),
        advantage: 0.0,
        episode,
    }
}

/// Gives every episode the advantage of its reward in its group: `episodes` holds group after group of `group_size`.
///
/// Episodes with a format error stay in their group. Returns how many groups earned one reward throughout, from which
/// there is nothing to learn.
///
/// # Panics
/// If `group_size` is below 2 or does not divide the number of episodes; the recipe's checks rule that out.
pub fn assign_advantages(
    episodes: &mut [GradedEpisode],
    group_size: usize,
    advantage: Advantage,
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
        for (episode, advantage) in group.iter_mut().zip(advantage.of(rewards)) {
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
pub fn training_rows(episodes: &[GradedEpisode]) -> Result<Vec<TrainingRow>> {
    let mut rows = Vec::new();
    for (index, graded) in episodes.iter().enumerate() {
        let index = EpisodeIndex(u32::try_from(index).unwrap_or(u32::MAX));
        let workers = graded.episode.workers.iter().map(|worker| &worker.record);
        for record in std::iter::once(&graded.episode.organizer).chain(workers) {
            if record.num_decoded() > 0 {
                rows.push(training_row(record, graded.advantage, index)?);
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
    episodes: &[GradedEpisode],
    queries: &[&str],
    tokenizer: &Tokenizer,
) -> Vec<EpisodeRecord> {
    let mut records = Vec::new();
    for (graded, query) in episodes.iter().zip(queries) {
        let organizer = record(step, graded, &graded.episode.organizer, query, tokenizer);
        records.push(organizer);
        for (index, worker) in graded.episode.workers.iter().enumerate() {
            records.push(EpisodeRecord {
                role: Role::Worker,
                worker_index: u32::try_from(index).ok(),
                sub_query_id: Some(worker.sub_query_id.0),
                worker_end: Some(worker.end.name().to_owned()),
                ..record(step, graded, &worker.record, &worker.sub_query, tokenizer)
            });
        }
    }
    records
}

fn record(
    step: u64,
    graded: &GradedEpisode,
    agent: &AgentRecord,
    query: &str,
    tokenizer: &Tokenizer,
) -> EpisodeRecord {
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
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
        text: tokenizer.decode(&agent.ids()[agent.prompt_tokens()..]),
        answer: episode.answer().map(str::to_owned),
        error: episode.format_error().map(|error| error.code().to_owned()),
        reward: graded.reward.total,
        reward_accuracy: graded.reward.accuracy,
        reward_concurrency: graded.reward.concurrency,
        advantage: graded.advantage,
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

/// Means over the episodes of a step; the deterministic part of its metrics.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct EpisodeFigures {
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

impl EpisodeFigures {
    /// Summarises the episodes of a step.
    ///
    /// # Errors
    /// When there are none.
    pub fn of(episodes: &[GradedEpisode]) -> Result<Self> {
        if episodes.is_empty() {
            return Err(Error::stage("summarising a step", "no episodes"));
        }
        let mean = |value: &dyn Fn(&GradedEpisode) -> f64| {
            episodes.iter().map(value).sum::<f64>() / episodes.len() as f64
        };
        let valid: Vec<(Concurrency, &GradedEpisode)> = episodes
            .iter()
            .filter_map(|episode| Some((episode.concurrency?, episode)))
            .collect();
        let mean_valid = |value: &dyn Fn(&Concurrency, &GradedEpisode) -> f64| {
            let sum: f64 = valid
                .iter()
                .map(|(concurrency, graded)| value(concurrency, graded))
                .sum();
            (!valid.is_empty()).then(|| sum / valid.len() as f64)
        };
        // Every code is listed, so that lines of all steps have the same keys.
        let mut format_errors: std::collections::BTreeMap<&'static str, usize> =
            asyncthink_protocol::FormatError::CODES
                .iter()
                .map(|code| (*code, 0))
                .collect();
        for error in episodes
            .iter()
            .filter_map(|episode| episode.episode.format_error())
        {
            *format_errors.entry(error.code()).or_default() += 1;
        }
        let decoded_tokens: usize = episodes
            .iter()
            .map(|episode| episode.episode.decoded_tokens())
            .sum();
        Ok(Self {
            reward: mean(&|episode| episode.reward.total),
            reward_accuracy: mean(&|episode| episode.reward.accuracy),
            reward_concurrency: mean(&|episode| episode.reward.concurrency),
            all_correct: mean(&|episode| {
                f64::from(u8::from(
                    episode.concurrency.is_some() && episode.num_correct >= episode.num_required,
                ))
            }),
            valid: valid.len() as f64 / episodes.len() as f64,
            eta_ratio: mean_valid(&|concurrency, _| concurrency.eta_ratio),
            eta_ratio_rewarded: mean_valid(&|_, graded| {
                graded.rewarded_eta_ratio.unwrap_or_default()
            }),
            latency_tokens: mean_valid(&|concurrency, _| concurrency.latency_tokens as f64),
            forks_per_query: mean_valid(&|_, graded| graded.episode.num_forks() as f64),
            joins_per_query: mean_valid(&|_, graded| graded.episode.num_joins as f64),
            empty_returns_per_query: mean_valid(&|_, graded| {
                graded.episode.num_empty_returns() as f64
            }),
            cancelled_workers_per_query: mean_valid(&|_, graded| {
                graded.episode.num_cancelled_workers() as f64
            }),
            decoded_tokens_per_query: mean_valid(&|_, graded| {
                graded.episode.decoded_tokens() as f64
            }),
            sampled_nll_nats: -sum_of_logprobs(episodes) / decoded_tokens.max(1) as f64,
            format_errors,
            num_episodes: episodes.len(),
            decoded_tokens,
        })
    }
}

fn sum_of_logprobs(episodes: &[GradedEpisode]) -> f64 {
    let agents = episodes.iter().flat_map(|graded| {
        let workers = graded.episode.workers.iter().map(|worker| &worker.record);
        std::iter::once(&graded.episode.organizer).chain(workers)
    });
    // Ids that were not decoded have a log-probability of 0.
    agents
        .flat_map(AgentRecord::logprobs)
        .map(|logprob| f64::from(*logprob))
        .sum()
}
