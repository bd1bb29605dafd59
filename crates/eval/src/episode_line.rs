//! A held-out episode as a line to read, in the format that `asyncthink-train trace` checks.

use asyncthink_protocol::{FormatError, RawTrace};
use asyncthink_rollout::GradedEpisode;
use serde::Serialize;

/// What organizer and workers wrote for one held-out problem, with its grade.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    pub error: Option<&'static str>,
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
    /// The line of an episode whose agents wrote `trace`.
    pub(crate) fn new(graded: &GradedEpisode, trace: RawTrace) -> Self {
        let episode = &graded.episode;
        let concurrency = graded.concurrency;
        Self {
            id: format!("p{}.s{}", episode.prompt_index, episode.sample_index),
            query: episode.query.clone(),
            trace,
            answer: episode.answer().map(str::to_owned),
            error: episode.format_error().map(FormatError::code),
            num_correct: graded.num_correct,
            num_required: graded.num_required,
            latency_tokens: concurrency.map(|concurrency| concurrency.latency_tokens),
            eta_ratio: concurrency.map(|concurrency| concurrency.eta_ratio),
        }
    }
}
