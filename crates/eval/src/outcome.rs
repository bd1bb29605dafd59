//! What evaluation keeps of an episode.

use asyncthink_rollout::Episode;
use asyncthink_tasks::Problem;
use serde::{Deserialize, Serialize};

use crate::share::ErrorCode;

/// One graded episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeOutcome {
    /// The problem, an index into those evaluated.
    pub problem: usize,
    /// Different correct items; 0 for a format error.
    pub num_correct: usize,
    /// Items that the problem asks for.
    pub num_required: usize,
    /// `R_A`; 0 for a format error.
    pub accuracy: f64,
    /// The code of its format error.
    #[serde(deserialize_with = "crate::share::error_code")]
    pub error: Option<ErrorCode>,
    /// Critical-path latency, of a valid episode.
    pub latency_tokens: Option<u64>,
    /// `eta / c`, of a valid episode.
    pub eta_ratio: Option<f64>,
    /// Forks.
    pub num_forks: usize,
    /// Workers without a complete RETURN.
    pub num_empty_returns: usize,
    /// Workers that were still at work when the organizer ended.
    pub num_cancelled_workers: usize,
    /// Tokens decoded by all agents.
    pub decoded_tokens: usize,
}

impl EpisodeOutcome {
    /// Grades an episode. Concurrency is the paper's, with workers that nobody joined.
    pub fn of(episode: &Episode, problem: &Problem) -> Self {
        let grade = episode.answer().map(|answer| problem.grade(answer));
        let concurrency = episode
            .timeline
            .as_ref()
            .map(|timeline| timeline.concurrency(true));
        Self {
            problem: episode.prompt_index,
            num_correct: grade.as_ref().map_or(0, |grade| grade.num_correct),
            num_required: problem.required(),
            accuracy: grade.as_ref().map_or(0.0, |grade| grade.reward),
            error: episode
                .format_error()
                .map(asyncthink_protocol::FormatError::code),
            latency_tokens: concurrency.map(|concurrency| concurrency.latency_tokens),
            eta_ratio: concurrency.map(|concurrency| concurrency.eta_ratio),
            num_forks: episode.num_forks(),
            num_empty_returns: episode.num_empty_returns(),
            num_cancelled_workers: episode.num_cancelled_workers(),
            decoded_tokens: episode.decoded_tokens(),
        }
    }
}
