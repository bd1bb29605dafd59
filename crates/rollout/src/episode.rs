//! The result of one query: everything that organizer and workers did.

use asyncthink_protocol::{FormatError, SubQueryId, Timeline};
use serde::{Deserialize, Serialize};

use crate::agent::AgentRecord;

/// An organizer trace with all its worker traces: the unit of reward and advantage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// Position of the problem in its data set.
    pub prompt_index: usize,
    /// The query, without the prompt around it.
    pub query: String,
    /// Which of the group's episodes this is.
    pub sample_index: usize,
    /// The organizer's ids.
    pub organizer: AgentRecord,
    /// The workers in Fork order.
    pub workers: Vec<WorkerRecord>,
    /// How it ended.
    pub outcome: Outcome,
    /// The record in decoded tokens, for latency and concurrency; `None` when the episode has a format error.
    pub timeline: Option<Timeline>,
    /// Joins served.
    pub num_joins: usize,
}

/// How an episode ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The content of a complete Answer.
    Answered(String),
    /// The first format error; generation stopped there.
    Failed(FormatError),
}

/// One worker's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// The id that the organizer chose.
    pub sub_query_id: SubQueryId,
    /// What it was asked.
    pub sub_query: String,
    /// Its ids.
    pub record: AgentRecord,
    /// How it ended.
    pub end: WorkerEnd,
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerEnd {
    /// With a complete RETURN of this content.
    Returned(String),
    /// It stopped or was cut without a complete RETURN; a Join hands over the empty string.
    Empty,
    /// The organizer ended first.
    Cancelled,
}

impl WorkerEnd {
    /// The end's name in files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Returned(_) => "returned",
            Self::Empty => "empty",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Episode {
    /// The answer, when there is one.
    pub fn answer(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Answered(answer) => Some(answer),
            Outcome::Failed(_) => None,
        }
    }

    /// The format error, when there is one.
    pub fn format_error(&self) -> Option<&FormatError> {
        match &self.outcome {
            Outcome::Answered(_) => None,
            Outcome::Failed(error) => Some(error),
        }
    }

    /// Sub-queries forked.
    pub fn num_forks(&self) -> usize {
        self.workers.len()
    }

    /// Workers that stopped or were cut without a complete RETURN.
    pub fn num_empty_returns(&self) -> usize {
        self.workers
            .iter()
            .filter(|worker| worker.end == WorkerEnd::Empty)
            .count()
    }

    /// Workers that the organizer did not outlive.
    pub fn num_cancelled_workers(&self) -> usize {
        self.workers
            .iter()
            .filter(|worker| worker.end == WorkerEnd::Cancelled)
            .count()
    }

    /// Workers that the organizer never joined: whatever they wrote was not read.
    pub fn num_unread_workers(&self) -> usize {
        self.workers.len().saturating_sub(self.num_joins)
    }

    /// Workers that handed over nothing: without a complete RETURN, or with a blank one.
    pub fn num_idle_workers(&self) -> usize {
        let is_idle = |worker: &&WorkerRecord| match &worker.end {
            WorkerEnd::Returned(text) => text.trim().is_empty(),
            WorkerEnd::Empty => true,
            WorkerEnd::Cancelled => false,
        };
        self.workers.iter().filter(is_idle).count()
    }

    /// Sub-queries that repeat the query word for word.
    pub fn num_copied_sub_queries(&self) -> usize {
        let is_copy = |worker: &&WorkerRecord| {
            let words = worker.sub_query.split_whitespace();
            words.eq(self.query.split_whitespace())
        };
        self.workers.iter().filter(is_copy).count()
    }

    /// Share of the critical path that the organizer spends waiting at Joins, in `[0, 1)`; `None` for a format error.
    pub fn join_wait_share(&self) -> Option<f64> {
        let timeline = self.timeline.as_ref()?;
        let latency = timeline.latency();
        let waiting = latency.saturating_sub(timeline.organizer_tokens());
        Some(waiting as f64 / latency.max(1) as f64)
    }

    /// Agents that a token limit ended before their ANSWER or RETURN was complete.
    pub fn num_truncated_agents(&self) -> usize {
        self.agents().filter(|record| record.is_truncated()).count()
    }

    /// Agents that completed their ANSWER or RETURN within their budget.
    pub fn num_completed_agents(&self) -> usize {
        self.completed_agents().count()
    }

    /// Completed agents whose sequence was not ended by themselves.
    pub fn num_missing_eos(&self) -> usize {
        self.completed_agents()
            .filter(|record| !record.ends_with_eos())
            .count()
    }

    fn completed_agents(&self) -> impl Iterator<Item = &AgentRecord> {
        let organizer = self.answer().map(|_| &self.organizer);
        let has_returned = |worker: &&WorkerRecord| matches!(worker.end, WorkerEnd::Returned(_));
        let workers = self.workers.iter().filter(has_returned);
        organizer
            .into_iter()
            .chain(workers.map(|worker| &worker.record))
    }

    /// The records of all agents, the organizer first.
    pub fn agents(&self) -> impl Iterator<Item = &AgentRecord> {
        let workers = self.workers.iter().map(|worker| &worker.record);
        std::iter::once(&self.organizer).chain(workers)
    }

    /// Tokens of all agents that latency and concurrency count: all that they decoded but their ends of sequence.
    pub fn counted_tokens(&self) -> usize {
        self.agents().map(AgentRecord::num_counted).sum()
    }

    /// Tokens decoded by all agents.
    pub fn decoded_tokens(&self) -> usize {
        self.agents().map(AgentRecord::num_decoded).sum()
    }
}
