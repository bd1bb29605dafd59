//! Decoding steps: one token of every running agent of an episode, however a backend delivers them.
//!
//! The protocol counts time in tokens: while the organizer decodes one token, each running worker decodes one. A step of an
//! episode is complete when each of its running agents has a token that was not taken yet; tokens of agents that are ahead
//! are kept until then. So an episode is the same over a backend that decodes in lock-step and over one whose agents are
//! fast and slow, and what is decoded past a Join, a RETURN or the episode's end has no effect.

use std::collections::VecDeque;

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, Request};
use asyncthink_protocol::WorkerIndex;

use crate::backend::{AgentBackend, AgentToken};
use crate::error::Result;

/// Agents of one episode have ids `episode << AGENT_BITS | role`, role 0 being the organizer.
const AGENT_BITS: u32 = 24;

/// Tokens that an agent may be ahead before it is held.
const MAX_AHEAD: usize = 16;

/// The id of an episode's organizer.
pub(crate) fn organizer_id(episode: u64) -> AgentId {
    AgentId(episode << AGENT_BITS)
}

/// The id of an episode's worker.
pub(crate) fn worker_id(episode: u64, worker: WorkerIndex) -> AgentId {
    AgentId((episode << AGENT_BITS) | (worker.0 as u64 + 1))
}

/// Splits an agent id into the episode's index and the worker, if it is one.
pub(crate) fn owner(agent: AgentId) -> (usize, Option<WorkerIndex>) {
    let (episode, role) = split(agent);
    (episode, role.checked_sub(1).map(WorkerIndex))
}

fn split(agent: AgentId) -> (usize, usize) {
    let to_index = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let role = agent.0 & ((1 << AGENT_BITS) - 1);
    (to_index(agent.0 >> AGENT_BITS), to_index(role))
}

/// A backend whose tokens come step by step.
pub(crate) struct StepSource<'a> {
    backend: &'a mut dyn AgentBackend,
    /// By index.
    episodes: Vec<EpisodeAgents>,
    /// Episodes that may have a complete step.
    listed: Vec<usize>,
    /// Running agents of all episodes.
    num_running: usize,
}

/// Agents of one episode.
#[derive(Default)]
struct EpisodeAgents {
    /// By role.
    agents: Vec<Option<Agent>>,
    num_running: usize,
    /// Running agents without a token.
    num_missing: usize,
    is_listed: bool,
}

#[derive(Default)]
struct Agent {
    is_running: bool,
    /// Whether the backend was told that the agent is ahead.
    is_held: bool,
    /// Decoded and not taken yet.
    ahead: VecDeque<(TokenId, Option<f32>)>,
}

impl EpisodeAgents {
    fn has_step(&self) -> bool {
        self.num_running > 0 && self.num_missing == 0
    }

    /// Stops an agent; what it has decoded is void.
    fn stop(&mut self, role: usize) -> bool {
        let agent = self.agents.get_mut(role).and_then(Option::as_mut);
        let Some(agent) = agent.filter(|agent| agent.is_running) else {
            return false;
        };
        self.num_missing -= usize::from(agent.ahead.is_empty());
        self.num_running -= 1;
        agent.is_running = false;
        agent.is_held = false;
        agent.ahead.clear();
        true
    }

    /// Lets an agent run that does not.
    fn run(&mut self, role: usize) -> bool {
        let Some(agent) = self.agents.get_mut(role).and_then(Option::as_mut) else {
            return false;
        };
        agent.is_running = true;
        self.num_running += 1;
        self.num_missing += 1;
        true
    }

    /// Keeps a token of a running agent; says whether the agent is to be held from now on.
    fn keep(&mut self, role: usize, token: (TokenId, Option<f32>)) -> bool {
        let agent = self.agents.get_mut(role).and_then(Option::as_mut);
        let Some(agent) = agent.filter(|agent| agent.is_running) else {
            return false;
        };
        self.num_missing -= usize::from(agent.ahead.is_empty());
        agent.ahead.push_back(token);
        let is_held = agent.ahead.len() >= MAX_AHEAD;
        is_held && !std::mem::replace(&mut agent.is_held, is_held)
    }

    /// Takes a token of every running agent, workers first; notes those that need not be held any more.
    fn take_step(
        &mut self,
        episode: usize,
        step: &mut Vec<AgentToken>,
        resumed: &mut Vec<AgentId>,
    ) {
        let num_workers = self.agents.len().saturating_sub(1);
        for role in (1..=num_workers).chain([0]) {
            let Some(Some(agent)) = self.agents.get_mut(role) else {
                continue;
            };
            if let Some((token, logprob)) = agent.ahead.pop_front() {
                self.num_missing += usize::from(agent.ahead.is_empty());
                let id = AgentId(((episode as u64) << AGENT_BITS) | role as u64);
                step.push(AgentToken {
                    agent: id,
                    token,
                    logprob,
                });
                if agent.is_held && agent.ahead.len() <= MAX_AHEAD / 2 {
                    agent.is_held = false;
                    resumed.push(id);
                }
            }
        }
    }
}

impl<'a> StepSource<'a> {
    pub(crate) fn new(backend: &'a mut dyn AgentBackend) -> Self {
        Self {
            backend,
            episodes: Vec::new(),
            listed: Vec::new(),
            num_running: 0,
        }
    }

    pub(crate) fn start(&mut self, request: Request) -> Result<()> {
        let (episode, role) = split(request.agent);
        self.backend.start(request)?;
        if self.episodes.len() <= episode {
            self.episodes
                .resize_with(episode + 1, EpisodeAgents::default);
        }
        let agents = &mut self.episodes[episode].agents;
        if agents.len() <= role {
            agents.resize_with(role + 1, || None);
        }
        agents[role] = Some(Agent::default());
        self.run(episode, role);
        Ok(())
    }

    pub(crate) fn inject(
        &mut self,
        agent: AgentId,
        keep_tokens: usize,
        ids: &[TokenId],
    ) -> Result<()> {
        self.backend.inject(agent, keep_tokens, ids)?;
        let (episode, role) = split(agent);
        self.stop(episode, role);
        self.run(episode, role);
        Ok(())
    }

    pub(crate) fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.backend.pause(agent)?;
        let (episode, role) = split(agent);
        self.stop(episode, role);
        Ok(())
    }

    pub(crate) fn cancel(&mut self, agent: AgentId) -> Result<()> {
        self.backend.cancel(agent)?;
        let (episode, role) = split(agent);
        self.stop(episode, role);
        let agents = self.episodes.get_mut(episode).map(|one| &mut one.agents);
        if let Some(place) = agents.and_then(|agents| agents.get_mut(role)) {
            *place = None;
        }
        Ok(())
    }

    pub(crate) fn num_free(&self) -> usize {
        self.backend.num_free()
    }

    pub(crate) fn max_sequence_tokens(&self) -> usize {
        self.backend.max_sequence_tokens()
    }

    /// Puts the next step of at least one episode into `step`: a token of each of its running agents, episode by episode,
    /// workers before organizers. Empty if no agent is running.
    pub(crate) fn next(&mut self, step: &mut Vec<AgentToken>) -> Result<()> {
        step.clear();
        while self.num_running > 0 {
            self.take_steps(step)?;
            if !step.is_empty() {
                break;
            }
            for decoded in self.backend.poll()? {
                let (episode, role) = split(decoded.agent);
                if let Some(agents) = self.episodes.get_mut(episode) {
                    if agents.keep(role, (decoded.token, decoded.logprob)) {
                        self.backend.hold(decoded.agent)?;
                    }
                    self.list(episode);
                }
            }
        }
        Ok(())
    }

    fn take_steps(&mut self, step: &mut Vec<AgentToken>) -> Result<()> {
        let mut resumed = Vec::new();
        let mut listed = std::mem::take(&mut self.listed);
        listed.sort_unstable();
        for episode in listed.drain(..) {
            let agents = &mut self.episodes[episode];
            agents.is_listed = false;
            if agents.has_step() {
                agents.take_step(episode, step, &mut resumed);
                // All agents may be ahead.
                self.list(episode);
            }
        }
        if self.listed.is_empty() {
            self.listed = listed;
        }
        for agent in resumed {
            self.backend.resume(agent)?;
        }
        Ok(())
    }

    /// Notes an episode that has a complete step.
    fn list(&mut self, episode: usize) {
        let agents = &mut self.episodes[episode];
        if agents.has_step() && !agents.is_listed {
            agents.is_listed = true;
            self.listed.push(episode);
        }
    }

    fn run(&mut self, episode: usize, role: usize) {
        let agents = self.episodes.get_mut(episode);
        self.num_running += usize::from(agents.is_some_and(|agents| agents.run(role)));
    }

    fn stop(&mut self, episode: usize, role: usize) {
        let agents = self.episodes.get_mut(episode);
        if agents.is_some_and(|agents| agents.stop(role)) {
            self.num_running -= 1;
            // The others may have waited for this one alone.
            self.list(episode);
        }
    }
}
