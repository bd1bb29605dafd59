//! Our own engine as a source of tokens.

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, BatchedEngine, Request};
use asyncthink_model::Decoder;

use super::{AgentBackend, AgentToken};
use crate::error::Result;

/// An engine with the decoder whose weights it samples from. Every poll is one step: a token for each running agent, in the
/// order of admission.
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
        // A step decodes one token, so that none is ever ahead of what was taken.
        debug_assert_eq!(self.engine.num_tokens(agent).ok(), Some(keep_tokens));
        Ok(self.engine.extend(agent, ids)?)
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        Ok(self.engine.pause(agent)?)
    }

    fn cancel(&mut self, agent: AgentId) -> Result<()> {
        Ok(self.engine.remove(agent)?)
    }

    fn poll(&mut self) -> Result<Vec<AgentToken>> {
        let sampled = self.engine.step(self.decoder)?.into_iter();
        let tokens = sampled.map(|sampled| AgentToken {
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
