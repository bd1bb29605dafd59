//! An episode with its grade: what rewards, training rows, dumps and evaluation are made from.

use asyncthink_protocol::Concurrency;
use asyncthink_tasks::Problem;
use serde::{Deserialize, Serialize};

use crate::episode::Episode;

/// An episode and what it is worth. It is written and read as a whole, so that ranks can exchange it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradedEpisode {
    /// Episode of organizer and workers.
    pub episode: Episode,
    /// Different correct items of the answer; 0 for a format error.
    pub num_correct: usize,
    /// Items that the problem asks for.
    pub num_required: usize,
    /// `R_A`; 0 for a format error.
    pub accuracy: f64,
    /// Latency and concurrency as the paper has them, with workers that nobody joined; `None` for a format error.
    pub concurrency: Option<Concurrency>,
}

impl GradedEpisode {
    /// Grades the answer of an episode.
    pub fn new(episode: Episode, problem: &Problem) -> Self {
        let grade = episode.answer().map(|answer| problem.grade(answer));
        Self {
            num_correct: grade.as_ref().map_or(0, |grade| grade.num_correct),
            num_required: problem.required(),
            accuracy: grade.as_ref().map_or(0.0, |grade| grade.reward),
            concurrency: episode
                .timeline
                .as_ref()
                .map(|timeline| timeline.concurrency(true)),
            episode,
        }
    }

    /// Whether everything asked for was found; never so for a format error.
    pub fn is_complete(&self) -> bool {
        self.episode.answer().is_some() && self.num_correct >= self.num_required
    }
}
