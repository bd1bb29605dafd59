//! Decoding steps: one token of every running agent of an episode, however a backend delivers them.
//!
//! The protocol counts time in tokens: while the organizer decodes one token, each running worker decodes one. A step of an
//! episode is complete when each of its running agents has a token that was not taken yet; tokens of agents that are ahead
//! are kept until then. So an episode is the same over a backend that decodes in lock-step and over one whose agents are
//! fast and slow, and what is decoded past a Join, a RETURN or the episode's end has no effect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, Request};
use asyncthink_protocol::WorkerIndex;

use crate::backend::{AgentBackend, AgentToken};
use crate::error::Result;

/// Agents of one episode have ids `episode << AGENT_BITS | role`, role 0 being the organizer.
const AGENT_BITS: u32 = 24;

/// The id of an episode's organizer.
pub(crate) fn organizer_id(episode: u64) -> AgentId {
    AgentId(episode << AGENT_BITS)
}

/// The id of an episode's worker.
pub(crate) fn worker_id(episode: u64, worker: WorkerIndex) -> AgentId {
    AgentId((episode << AGENT_BITS) | (worker.0 as u64 + 1))
}

/// Splits an agent id into the episode's index and the worker, if it is one.
pub(crate) fn owner(agent: AgentId) -> (u64, Option<WorkerIndex>) {
    let role = agent.0 & ((1 << AGENT_BITS) - 1);
    let worker = role
        .checked_sub(1)
        .map(|index| WorkerIndex(usize::try_from(index).unwrap_or(usize::MAX)));
    (agent.0 >> AGENT_BITS, worker)
}

/// A backend whose tokens come step by step.
pub(crate) struct StepSource<'a> {
    backend: &'a mut dyn AgentBackend,
    /// By order of admission.
    agents: BTreeMap<u64, RunningAgent>,
    by_id: BTreeMap<AgentId, u64>,
    next_arrival: u64,
}

struct RunningAgent {
    id: AgentId,
    is_running: bool,
    /// Decoded and not taken yet.
    ahead: VecDeque<(TokenId, Option<f32>)>,
}

impl<'a> StepSource<'a> {
    pub(crate) fn new(backend: &'a mut dyn AgentBackend) -> Self {
        Self {
            backend,
            agents: BTreeMap::new(),
            by_id: BTreeMap::new(),
            next_arrival: 0,
        }
    }

    pub(crate) fn start(&mut self, request: Request) -> Result<()> {
        let id = request.agent;
        self.backend.start(request)?;
        let agent = RunningAgent {
            id,
            is_running: true,
            ahead: VecDeque::new(),
        };
        self.by_id.insert(id, self.next_arrival);
        self.agents.insert(self.next_arrival, agent);
        self.next_arrival += 1;
        Ok(())
    }

    pub(crate) fn inject(
        &mut self,
        agent: AgentId,
        keep_tokens: usize,
        ids: &[TokenId],
    ) -> Result<()> {
        self.backend.inject(agent, keep_tokens, ids)?;
        self.set_running(agent, true);
        Ok(())
    }

    pub(crate) fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.backend.pause(agent)?;
        self.set_running(agent, false);
        Ok(())
    }

    pub(crate) fn cancel(&mut self, agent: AgentId) -> Result<()> {
        self.backend.cancel(agent)?;
        if let Some(arrival) = self.by_id.remove(&agent) {
            self.agents.remove(&arrival);
        }
        Ok(())
    }

    pub(crate) fn num_free(&self) -> usize {
        self.backend.num_free()
    }

    pub(crate) fn max_sequence_tokens(&self) -> usize {
        self.backend.max_sequence_tokens()
    }

    /// The next step of at least one episode: a token of each of its running agents, in order of admission. Empty if no agent
    /// is running.
    pub(crate) fn next(&mut self) -> Result<Vec<AgentToken>> {
        if !self.agents.values().any(|agent| agent.is_running) {
            return Ok(Vec::new());
        }
        loop {
            let step = self.take_complete();
            if !step.is_empty() {
                return Ok(step);
            }
            for decoded in self.backend.poll()? {
                self.keep(decoded);
            }
        }
    }

    /// Tokens decoded after the agent was stopped, or before text was injected, are discarded.
    fn set_running(&mut self, agent: AgentId, is_running: bool) {
        let arrival = self.by_id.get(&agent);
        if let Some(agent) = arrival.and_then(|arrival| self.agents.get_mut(arrival)) {
            agent.is_running = is_running;
            agent.ahead.clear();
        }
    }

    fn keep(&mut self, decoded: AgentToken) {
        let arrival = self.by_id.get(&decoded.agent);
        if let Some(agent) = arrival.and_then(|arrival| self.agents.get_mut(arrival))
            && agent.is_running
        {
            agent.ahead.push_back((decoded.token, decoded.logprob));
        }
    }

    /// Takes a token of every running agent of the episodes in which all have one.
    fn take_complete(&mut self) -> Vec<AgentToken> {
        let running = || self.agents.values().filter(|agent| agent.is_running);
        let waiting: BTreeSet<u64> = running()
            .filter(|agent| agent.ahead.is_empty())
            .map(|agent| owner(agent.id).0)
            .collect();
        let mut step = Vec::new();
        for agent in self.agents.values_mut().filter(|agent| agent.is_running) {
            if !waiting.contains(&owner(agent.id).0)
                && let Some((token, logprob)) = agent.ahead.pop_front()
            {
                step.push(AgentToken {
                    agent: agent.id,
                    token,
                    logprob,
                });
            }
        }
        step
    }
}
