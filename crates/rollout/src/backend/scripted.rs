//! Given tokens over another source of tokens.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, Request};

use super::{AgentBackend, AgentToken};
use crate::error::Result;
use crate::observer::Agent;
use crate::steps::owner;

/// Script of an agent, by the position of its query and its role.
type ScriptOf<'a> = dyn FnMut(usize, Agent) -> Vec<TokenId> + 'a;

/// Plays given tokens over another backend, which computes every step: each token that it samples is replaced by the next of
/// the agent's script. After the script its own tokens count.
///
/// So the work of a rollout is known beforehand, for benchmarks and tests, and is that of a real one. Replaced tokens have no
/// log-probs.
pub struct ScriptedBackend<'a> {
    inner: &'a mut dyn AgentBackend,
    script_of: Box<ScriptOf<'a>>,
    agents: BTreeMap<AgentId, Playing>,
}

struct Playing {
    script: VecDeque<TokenId>,
    num_tokens: usize,
}

impl fmt::Debug for ScriptedBackend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedBackend")
            .field("num_agents", &self.agents.len())
            .finish_non_exhaustive()
    }
}

impl<'a> ScriptedBackend<'a> {
    /// Plays over `inner`; `script_of` gives the script of an agent that starts, by the position of its query in the rollout.
    pub fn new(
        inner: &'a mut dyn AgentBackend,
        script_of: impl FnMut(usize, Agent) -> Vec<TokenId> + 'a,
    ) -> Self {
        Self {
            inner,
            script_of: Box::new(script_of),
            agents: BTreeMap::new(),
        }
    }
}

impl AgentBackend for ScriptedBackend<'_> {
    fn start(&mut self, request: Request) -> Result<()> {
        let (id, num_tokens) = (request.agent, request.prompt.len());
        let (query, worker) = owner(id);
        let script = (self.script_of)(query, worker.map_or(Agent::Organizer, Agent::Worker));
        self.inner.start(request)?;
        let playing = Playing {
            script: script.into(),
            num_tokens,
        };
        self.agents.insert(id, playing);
        Ok(())
    }

    fn inject(&mut self, agent: AgentId, keep_tokens: usize, ids: &[TokenId]) -> Result<()> {
        self.inner.inject(agent, keep_tokens, ids)?;
        if let Some(playing) = self.agents.get_mut(&agent) {
            playing.num_tokens = keep_tokens + ids.len();
        }
        Ok(())
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.inner.pause(agent)
    }

    fn cancel(&mut self, agent: AgentId) -> Result<()> {
        self.agents.remove(&agent);
        self.inner.cancel(agent)
    }

    fn poll(&mut self) -> Result<Vec<AgentToken>> {
        let mut played: Vec<AgentToken> = Vec::new();
        let mut replaced = Vec::new();
        for sampled in self.inner.poll()? {
            let Some(playing) = self.agents.get_mut(&sampled.agent) else {
                continue;
            };
            // Tokens after a replaced one are void: they were decoded after another token.
            if replaced.contains(&sampled.agent) {
                continue;
            }
            let token = match playing.script.pop_front() {
                Some(token) => {
                    let keep_tokens = playing.num_tokens;
                    self.inner.inject(sampled.agent, keep_tokens, &[token])?;
                    replaced.push(sampled.agent);
                    AgentToken {
                        agent: sampled.agent,
                        token,
                        logprob: None,
                    }
                }
                None => sampled,
            };
            playing.num_tokens += 1;
            played.push(token);
        }
        Ok(played)
    }

    fn num_free(&self) -> usize {
        self.inner.num_free()
    }

    fn max_sequence_tokens(&self) -> usize {
        self.inner.max_sequence_tokens()
    }
}
