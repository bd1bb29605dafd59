//! Watching episodes while they run.

use asyncthink_data::TokenId;
use asyncthink_protocol::{SubQueryId, WorkerIndex};

use crate::episode::{Outcome, WorkerEnd};

/// Who takes part in an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agent {
    /// The organizer.
    Organizer,
    /// A worker, by its place in Fork order.
    Worker(WorkerIndex),
}

/// What happens to an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AgentEvent<'a> {
    /// The worker was forked. Where the pool is full it decodes later.
    Forked {
        /// The number in the Fork.
        sub_query_id: SubQueryId,
        /// What it is asked.
        sub_query: &'a str,
    },
    /// The agent decoded a token.
    Decoded {
        /// The token.
        token: TokenId,
        /// What it adds to the agent's text: any bytes, parts of characters included; none for a special token.
        bytes: &'a [u8],
    },
    /// The organizer waits at a Join.
    Waiting {
        /// The worker that it waits for.
        worker: WorkerIndex,
    },
    /// A Join was served: this text stands in the organizer's context now.
    Injected {
        /// The worker that returned it.
        worker: WorkerIndex,
        /// The returned text and the closing tag.
        text: &'a str,
    },
    /// The worker ended.
    Ended(&'a WorkerEnd),
    /// The organizer ended, and with it the episode; workers that still ran are cancelled after this event.
    Finished(&'a Outcome),
}

/// An event of one episode of a rollout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RolloutEvent<'a> {
    /// Position of the episode's query among those of the rollout.
    pub query: usize,
    /// Whom it is about.
    pub agent: Agent,
    /// What happened.
    pub event: AgentEvent<'a>,
}

/// Progress of a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RolloutProgress {
    /// Episodes that ended.
    pub finished_episodes: usize,
    /// Episodes asked for.
    pub total_episodes: usize,
    /// Tokens decoded so far by all agents.
    pub decoded_tokens: u64,
    /// Decoding steps so far.
    pub num_steps: u64,
}

/// Watches a rollout.
pub trait RolloutObserver {
    /// Something happened to an agent.
    fn event(&mut self, event: &RolloutEvent<'_>);

    /// A step is over, with all its events; `false` stops the rollout.
    fn step(&mut self, progress: RolloutProgress) -> bool;
}

/// Listens to no event.
pub(crate) struct ProgressOnly<'a>(pub(crate) &'a mut dyn FnMut(RolloutProgress) -> bool);

impl RolloutObserver for ProgressOnly<'_> {
    fn event(&mut self, _: &RolloutEvent<'_>) {}

    fn step(&mut self, progress: RolloutProgress) -> bool {
        (self.0)(progress)
    }
}
