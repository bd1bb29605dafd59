//! Our engine as a source of tokens that measures its steps.

use std::collections::BTreeMap;
use std::time::Instant;

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, BatchedEngine, Request};
use asyncthink_model::Decoder;
use asyncthink_rollout::{AgentBackend, AgentToken, EngineBackend, Result};

use super::cost::Rows;

/// Steps of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Steps {
    pub(crate) seconds: f64,
    pub(crate) rows: Rows,
}

/// Measurements of one rollout.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// Steps that computed tokens which were given: prompts and injected text. They sample too.
    pub(crate) prefill: Steps,
    /// Steps that computed sampled tokens only.
    pub(crate) decode: Steps,
    /// Tokens of prompts and of injected text.
    pub(crate) given_tokens: u64,
    /// Those that were computed; the others were in the cache.
    pub(crate) prefilled_tokens: u64,
}

/// An engine that measures.
pub(crate) struct MeteredBackend<'a> {
    engine: &'a mut BatchedEngine,
    decoder: &'a Decoder,
    /// Tokens of each agent.
    num_tokens: BTreeMap<AgentId, usize>,
    /// Tokens that given tokens attend to, summed over these.
    given_attended: f64,
    measured: Measured,
}

impl<'a> MeteredBackend<'a> {
    pub(crate) fn new(engine: &'a mut BatchedEngine, decoder: &'a Decoder) -> Self {
        Self {
            engine,
            decoder,
            num_tokens: BTreeMap::new(),
            given_attended: 0.0,
            measured: Measured::default(),
        }
    }

    pub(crate) fn measured(&self) -> Measured {
        self.measured
    }

    fn backend(&mut self) -> EngineBackend<'_> {
        EngineBackend::new(self.engine, self.decoder)
    }

    /// Notes tokens that follow the first `before` ones of an agent.
    fn give(&mut self, before: usize, count: usize) {
        self.measured.given_tokens += count as u64;
        self.given_attended += count as f64 * (before as f64 + 0.5 * (count as f64 + 1.0));
    }
}

impl AgentBackend for MeteredBackend<'_> {
    fn start(&mut self, request: Request) -> Result<()> {
        let (agent, num_tokens) = (request.agent, request.prompt.len());
        self.backend().start(request)?;
        self.num_tokens.insert(agent, num_tokens);
        self.give(0, num_tokens);
        Ok(())
    }

    fn inject(&mut self, agent: AgentId, keep_tokens: usize, ids: &[TokenId]) -> Result<()> {
        self.backend().inject(agent, keep_tokens, ids)?;
        let after = keep_tokens + ids.len();
        let before = self.num_tokens.insert(agent, after).unwrap_or(after);
        // A sampled token that another one replaces is no work more.
        let kept = before.max(keep_tokens);
        self.give(kept, after.saturating_sub(kept));
        Ok(())
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.backend().pause(agent)
    }

    fn cancel(&mut self, agent: AgentId) -> Result<()> {
        self.num_tokens.remove(&agent);
        self.backend().cancel(agent)
    }

    fn poll(&mut self) -> Result<Vec<AgentToken>> {
        let before = self.engine.stats();
        let start = Instant::now();
        let tokens = self.backend().poll()?;
        let seconds = start.elapsed().as_secs_f64();
        let after = self.engine.stats();
        let prefilled = after.prefilled_tokens - before.prefilled_tokens;
        let mut cached = 0.0;
        for token in &tokens {
            if let Some(num_tokens) = self.num_tokens.get_mut(&token.agent) {
                cached += *num_tokens as f64;
                *num_tokens += 1;
            }
        }
        // Which of the given tokens were computed now, and which were in the cache, is not told: the mean stands for them.
        let attended = self.given_attended / (self.measured.given_tokens as f64).max(1.0);
        let rows = Rows {
            steps: (after.num_steps - before.num_steps) as f64,
            computed: prefilled as f64 + tokens.len() as f64,
            sampled: tokens.len() as f64,
            attended: attended * prefilled as f64 + cached,
            cached,
        };
        self.measured.prefilled_tokens += prefilled;
        let steps = if prefilled > 0 {
            &mut self.measured.prefill
        } else {
            &mut self.measured.decode
        };
        steps.seconds += seconds;
        steps.rows = steps.rows.plus(rows);
        Ok(tokens)
    }

    fn num_free(&self) -> usize {
        self.engine.num_free()
    }

    fn max_sequence_tokens(&self) -> usize {
        self.engine.max_sequence_tokens()
    }
}
