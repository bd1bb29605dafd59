//! Our own engine as a source of tokens.

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, BatchedEngine, Request};
use asyncthink_model::Decoder;

use super::{AgentBackend, AgentToken};
use crate::error::{Error, Result};

/// An engine with the decoder whose weights it samples from. A poll is as many steps as it takes until some agent has a
/// token.
#[derive(Debug)]
pub struct EngineBackend<'a> {
    engine: &'a mut BatchedEngine,
    decoder: &'a Decoder,
}

impl<'a> EngineBackend<'a> {
    /// Lends engine and decoder for a rollout.
    pub fn new(engine: &'a mut BatchedEngine, decoder: &'a Decoder) -> Self {
        Self { engine, decoder }
    }
}

impl AgentBackend for EngineBackend<'_> {
    fn start(&mut self, request: Request) -> Result<()> {
        Ok(self.engine.add(&request)?)
    }

    fn inject(&mut self, agent: AgentId, keep_tokens: usize, ids: &[TokenId]) -> Result<()> {
        Ok(self.engine.extend(agent, keep_tokens, ids)?)
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        Ok(self.engine.pause(agent)?)
    }

    fn hold(&mut self, agent: AgentId) -> Result<()> {
        Ok(self.engine.pause(agent)?)
    }

    fn resume(&mut self, agent: AgentId) -> Result<()> {
        Ok(self.engine.resume(agent)?)
    }

    fn cancel(&mut self, agent: AgentId) -> Result<()> {
        Ok(self.engine.remove(agent)?)
    }

    fn poll(&mut self) -> Result<Vec<AgentToken>> {
        let sampled = loop {
            let sampled = self.engine.step(self.decoder)?;
            if !sampled.is_empty() {
                break sampled;
            }
            if !self.engine.has_work() {
                return Err(Error::Stalled);
            }
        };
        let tokens = sampled.into_iter().map(|sampled| AgentToken {
            agent: sampled.agent,
            token: sampled.token,
            logprob: Some(sampled.logprob),
        });
        Ok(tokens.collect())
    }

    fn num_free(&self) -> usize {
        self.engine.num_free()
    }

    fn max_sequence_tokens(&self) -> usize {
        self.engine.max_sequence_tokens()
    }
}
