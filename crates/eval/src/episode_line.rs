//! A held-out episode as a line to read, in the format that `asyncthink-train trace` checks.

use asyncthink_data::Tokenizer;
use asyncthink_protocol::{Protocol, RawTrace};
use asyncthink_rollout::Episode;
use serde::{Deserialize, Serialize};

use crate::outcome::EpisodeOutcome;
use crate::share::ErrorCode;

/// What organizer and workers wrote for one held-out problem, with its grade.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpisodeLine {
    /// Problem and sample, as `p12.s0`.
    pub id: String,
    /// The query, without the prompt around it.
    pub query: String,
    /// The texts: `capacity`, `organizer`, `workers`.
    #[serde(flatten)]
    pub trace: RawTrace,
    /// The content of the answer.
    pub answer: Option<String>,
    /// The code of the format error, if there is one.
    #[serde(deserialize_with = "crate::share::error_code")]
    pub error: Option<ErrorCode>,
    /// Different correct items.
    pub num_correct: usize,
    /// Items that the problem asks for.
    pub num_required: usize,
    /// Critical-path latency, of a valid episode.
    pub latency_tokens: Option<u64>,
    /// `eta / c`, of a valid episode.
    pub eta_ratio: Option<f64>,
}

impl EpisodeLine {
    /// The id of a sample of a problem.
    pub(crate) fn id_of(problem: usize, sample: usize) -> String {
        format!("p{problem}.s{sample}")
    }

    pub(crate) fn of(
        episode: &Episode,
        outcome: &EpisodeOutcome,
        query: &str,
        protocol: Protocol,
        tokenizer: &Tokenizer,
    ) -> Self {
        Self {
            id: Self::id_of(episode.prompt_index, episode.sample_index),
            query: query.to_owned(),
            trace: episode.raw_trace(tokenizer, protocol),
            answer: episode.answer().map(str::to_owned),
            error: outcome.error,
            num_correct: outcome.num_correct,
            num_required: outcome.num_required,
            latency_tokens: outcome.latency_tokens,
            eta_ratio: outcome.eta_ratio,
        }
    }
}
