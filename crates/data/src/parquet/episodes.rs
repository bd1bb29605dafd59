use std::path::Path;

use super::pairs::Role;
use super::table::{self, Columns};
use crate::{Result, TokenId};

const KIND: &str = "episodes";

/// One agent's context in one sampled episode; what belongs to the whole episode is repeated in each of its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct EpisodeRecord {
    /// The training step that sampled it.
    pub step: u64,
    /// The problem, an index into its file.
    pub prompt_index: u64,
    /// Which of the problem's episodes.
    pub sample_index: u32,
    /// Who wrote this context.
    pub role: Role,
    /// Which worker in Fork order; `None` for the organizer.
    pub worker_index: Option<u32>,
    /// The id in the worker's Fork tag; `None` for the organizer.
    pub sub_query_id: Option<u32>,
    /// How the worker ended: `returned`, `empty` (no complete RETURN) or `cancelled`; `None` for the organizer.
    pub worker_end: Option<String>,
    /// The organizer's query, or the worker's sub-query.
    pub query: String,
    /// The whole context, prompt first.
    pub ids: Vec<TokenId>,
    /// How many of the ids are the prompt.
    pub prompt_len: u32,
    /// Per id: did the agent decode it.
    pub decoded: Vec<bool>,
    /// Per id: the sampler's log-probability in nats, 0 where nothing was decoded.
    pub logprobs: Vec<f32>,
    /// The text after the prompt.
    pub text: String,
    /// The answer; `None` for an episode with a format error.
    pub answer: Option<String>,
    /// The code of the format error.
    pub error: Option<String>,
    /// The episode's reward.
    pub reward: f64,
    /// Its part for accuracy.
    pub reward_accuracy: f64,
    /// Its part for concurrency, before its weight.
    pub reward_concurrency: f64,
    /// The episode's advantage.
    pub advantage: f64,
    /// Correct items of the answer.
    pub num_correct: u32,
    /// Items that the problem asks for.
    pub num_required: u32,
    /// Critical-path latency; `None` for an episode with a format error.
    pub latency_tokens: Option<u64>,
    /// Mean number of agents decoding.
    pub eta: Option<f64>,
    /// The same as a share of the capacity.
    pub eta_ratio: Option<f64>,
    /// Forks in the episode.
    pub num_forks: u32,
    /// Joins in the episode.
    pub num_joins: u32,
}

/// Writes the rows of a step's episodes, in order.
///
/// # Errors
/// The file cannot be written.
pub fn write_episodes(path: &Path, rows: &[EpisodeRecord]) -> Result<()> {
    Columns::new()
        .u64s("step", rows.iter().map(|row| row.step))
        .u64s("prompt_index", rows.iter().map(|row| row.prompt_index))
        .u32s("sample_index", rows.iter().map(|row| row.sample_index))
        .strings("role", rows.iter().map(|row| row.role.name()))
        .optional_u32s("worker_index", rows.iter().map(|row| row.worker_index))
        .optional_u32s("sub_query_id", rows.iter().map(|row| row.sub_query_id))
        .optional_strings(
            "worker_end",
            rows.iter().map(|row| row.worker_end.as_deref()),
        )
        .strings("query", rows.iter().map(|row| row.query.as_str()))
        .u32_lists(
            "ids",
            rows.iter()
                .map(|row| row.ids.iter().map(|id| id.0).collect()),
        )
        .u32s("prompt_len", rows.iter().map(|row| row.prompt_len))
        .bool_lists("decoded", rows.iter().map(|row| row.decoded.as_slice()))
        .f32_lists("logprobs", rows.iter().map(|row| row.logprobs.as_slice()))
        .strings("text", rows.iter().map(|row| row.text.as_str()))
        .optional_strings("answer", rows.iter().map(|row| row.answer.as_deref()))
        .optional_strings("error", rows.iter().map(|row| row.error.as_deref()))
        .f64s("reward", rows.iter().map(|row| row.reward))
        .f64s(
            "reward_accuracy",
            rows.iter().map(|row| row.reward_accuracy),
        )
        .f64s(
            "reward_concurrency",
            rows.iter().map(|row| row.reward_concurrency),
        )
        .f64s("advantage", rows.iter().map(|row| row.advantage))
        .u32s("num_correct", rows.iter().map(|row| row.num_correct))
        .u32s("num_required", rows.iter().map(|row| row.num_required))
        .optional_u64s("latency_tokens", rows.iter().map(|row| row.latency_tokens))
        .optional_f64s("eta", rows.iter().map(|row| row.eta))
        .optional_f64s("eta_ratio", rows.iter().map(|row| row.eta_ratio))
        .u32s("num_forks", rows.iter().map(|row| row.num_forks))
        .u32s("num_joins", rows.iter().map(|row| row.num_joins))
        .write(path, KIND)
}

/// Reads the rows of a step's episodes, in order.
///
/// # Errors
/// The file cannot be read, is damaged, holds other rows, or the lists of a row differ in length.
pub fn read_episodes(path: &Path) -> Result<Vec<EpisodeRecord>> {
    table::read(path, KIND, |batch| {
        let role = batch.strings("role")?;
        let step = batch.u64s("step")?;
        let prompt_index = batch.u64s("prompt_index")?;
        let sample_index = batch.u32s("sample_index")?;
        let worker_index = batch.optional_u32s("worker_index")?;
        let sub_query_id = batch.optional_u32s("sub_query_id")?;
        let mut worker_end = batch.optional_strings("worker_end")?;
        let mut query = batch.strings("query")?;
        let ids = batch.u32_lists("ids")?;
        let prompt_len = batch.u32s("prompt_len")?;
        let mut decoded = batch.bool_lists("decoded")?;
        let mut logprobs = batch.f32_lists("logprobs")?;
        let mut text = batch.strings("text")?;
        let mut answer = batch.optional_strings("answer")?;
        let mut error = batch.optional_strings("error")?;
        let reward = batch.f64s("reward")?;
        let reward_accuracy = batch.f64s("reward_accuracy")?;
        let reward_concurrency = batch.f64s("reward_concurrency")?;
        let advantage = batch.f64s("advantage")?;
        let num_correct = batch.u32s("num_correct")?;
        let num_required = batch.u32s("num_required")?;
        let latency_tokens = batch.optional_u64s("latency_tokens")?;
        let eta = batch.optional_f64s("eta")?;
        let eta_ratio = batch.optional_f64s("eta_ratio")?;
        let num_forks = batch.u32s("num_forks")?;
        let num_joins = batch.u32s("num_joins")?;
        (0..batch.num_rows())
            .map(|row| {
                let num_ids = ids[row].len();
                if decoded[row].len() != num_ids
                    || logprobs[row].len() != num_ids
                    || prompt_len[row] as usize > num_ids
                {
                    return Err(batch.row_error(
                        row,
                        "ids, mask, log-probabilities and prompt differ in length",
                    ));
                }
                let name = &role[row];
                Ok(EpisodeRecord {
                    step: step[row],
                    prompt_index: prompt_index[row],
                    sample_index: sample_index[row],
                    role: Role::from_name(name)
                        .ok_or_else(|| batch.row_error(row, format!("unknown role `{name}`")))?,
                    worker_index: worker_index[row],
                    sub_query_id: sub_query_id[row],
                    worker_end: std::mem::take(&mut worker_end[row]),
                    query: std::mem::take(&mut query[row]),
                    ids: ids[row].iter().copied().map(TokenId).collect(),
                    prompt_len: prompt_len[row],
                    decoded: std::mem::take(&mut decoded[row]),
                    logprobs: std::mem::take(&mut logprobs[row]),
                    text: std::mem::take(&mut text[row]),
                    answer: std::mem::take(&mut answer[row]),
                    error: std::mem::take(&mut error[row]),
                    reward: reward[row],
                    reward_accuracy: reward_accuracy[row],
                    reward_concurrency: reward_concurrency[row],
                    advantage: advantage[row],
                    num_correct: num_correct[row],
                    num_required: num_required[row],
                    latency_tokens: latency_tokens[row],
                    eta: eta[row],
                    eta_ratio: eta_ratio[row],
                    num_forks: num_forks[row],
                    num_joins: num_joins[row],
                })
            })
            .collect()
    })
}
