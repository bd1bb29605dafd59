//! An episode with its grade: what rewards, training rows, dumps and evaluation are made from.

use std::collections::BTreeSet;

use asyncthink_data::Tokenizer;
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
    /// Attempts of all agents; `None` where they were not counted, or the task cannot tell them from other text.
    pub attempts: Option<AttemptCounts>,
}

/// Attempts at items of the answer, right or wrong, over all agents of an episode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptCounts {
    /// Attempts, those that an agent repeats itself included.
    pub num_attempts: usize,
    /// Attempts at what another agent, earlier in the order organizer, workers by Fork, has tried too.
    pub num_repeated: usize,
}

impl AttemptCounts {
    /// Counts what the agents decoded; prompts and injected text are not theirs.
    fn of(episode: &Episode, problem: &Problem, tokenizer: &Tokenizer) -> Option<Self> {
        let mut counts = Self::default();
        let mut tried = BTreeSet::new();
        for record in episode.agents() {
            let attempts = problem.attempts(&tokenizer.decode(&record.decoded_ids()))?;
            counts.num_attempts += attempts.len();
            counts.num_repeated += attempts.iter().filter(|one| tried.contains(*one)).count();
            tried.extend(attempts);
        }
        Some(counts)
    }
}

impl GradedEpisode {
    /// Grades the answer of an episode; attempts are not counted.
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
            attempts: None,
            episode,
        }
    }

    /// Counts the attempts in what the agents decoded with `tokenizer`.
    #[must_use]
    pub fn with_attempts(mut self, problem: &Problem, tokenizer: &Tokenizer) -> Self {
        self.attempts = AttemptCounts::of(&self.episode, problem, tokenizer);
        self
    }

    /// Whether everything asked for was found; never so for a format error.
    pub fn is_complete(&self) -> bool {
        self.episode.answer().is_some() && self.num_correct >= self.num_required
    }
}
