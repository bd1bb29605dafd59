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
    /// Those that were computed.
    pub(crate) computed_tokens: u64,
    /// Those that the cache held, or that another agent of the same prompt had computed.
    pub(crate) reused_tokens: u64,
    /// Tokens computed again after a preemption.
    pub(crate) recomputed_tokens: u64,
    /// Agents that lost their blocks.
    pub(crate) preemptions: u64,
}

/// Tokens of an agent.
#[derive(Clone, Copy, Debug, Default)]
struct Context {
    num_tokens: usize,
    /// Prompt or injected text that its next token follows.
    is_given: bool,
    /// Whether a given token stands in place of the one that it sampled last: a row of decoding, which the engine counts as
    /// given.
    is_replaced: bool,
}

/// An engine that measures.
pub(crate) struct MeteredBackend<'a> {
    engine: &'a mut BatchedEngine,
    decoder: &'a Decoder,
    agents: BTreeMap<AgentId, Context>,
    /// Tokens that given tokens attend to, summed over these.
    given_attended: f64,
    measured: Measured,
}

impl<'a> MeteredBackend<'a> {
    pub(crate) fn new(engine: &'a mut BatchedEngine, decoder: &'a Decoder) -> Self {
        Self {
            engine,
            decoder,
            agents: BTreeMap::new(),
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

    /// Rows of steps that sampled these tokens, but for the tokens given that they computed; and the rows that the engine
    /// counts among these.
    fn sampled_rows(&mut self, tokens: &[AgentToken]) -> (Rows, u64) {
        let (mut rows, mut num_replaced) = (Rows::default(), 0);
        for token in tokens {
            let Some(context) = self.agents.get_mut(&token.agent) else {
                continue;
            };
            num_replaced += u64::from(context.is_replaced);
            rows.sampled += 1.0;
            rows.cached += context.num_tokens as f64;
            if !context.is_given || context.is_replaced {
                rows.computed += 1.0;
                rows.attended += context.num_tokens as f64;
            }
            *context = Context {
                num_tokens: context.num_tokens + 1,
                ..Context::default()
            };
        }
        (rows, num_replaced)
    }
}

impl AgentBackend for MeteredBackend<'_> {
    fn start(&mut self, request: Request) -> Result<()> {
        let (agent, num_tokens) = (request.agent, request.prompt.len());
        self.backend().start(request)?;
        let context = Context {
            num_tokens,
            is_given: true,
            is_replaced: false,
        };
        self.agents.insert(agent, context);
        self.give(0, num_tokens);
        Ok(())
    }

    fn inject(&mut self, agent: AgentId, keep_tokens: usize, ids: &[TokenId]) -> Result<()> {
        self.backend().inject(agent, keep_tokens, ids)?;
        let after = keep_tokens + ids.len();
        let Some(context) = self.agents.get_mut(&agent) else {
            return Ok(());
        };
        let kept = context.num_tokens.max(keep_tokens).min(after);
        context.is_replaced |= keep_tokens < context.num_tokens;
        context.is_given |= kept < after;
        context.num_tokens = after;
        self.give(kept, after - kept);
        Ok(())
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.backend().pause(agent)
    }

    fn cancel(&mut self, agent: AgentId) -> Result<()> {
        self.agents.remove(&agent);
        self.backend().cancel(agent)
    }

    fn poll(&mut self) -> Result<Vec<AgentToken>> {
        let before = self.engine.stats();
        let start = Instant::now();
        let tokens = self.backend().poll()?;
        let seconds = start.elapsed().as_secs_f64();
        let after = self.engine.stats();
        let (mut rows, num_replaced) = self.sampled_rows(&tokens);
        let counted = after.prefilled_tokens - before.prefilled_tokens;
        let computed = counted.saturating_sub(num_replaced);
        let recomputed = after.recomputed_tokens - before.recomputed_tokens;
        // Which of the given tokens were computed now, and which were in the cache, is not told: the mean stands for them.
        let attended = self.given_attended / (self.measured.given_tokens as f64).max(1.0);
        rows.steps = (after.num_steps - before.num_steps) as f64;
        rows.computed += (computed + recomputed) as f64;
        rows.attended += attended * (computed + recomputed) as f64;
        let measured = &mut self.measured;
        measured.computed_tokens += computed;
        measured.recomputed_tokens += recomputed;
        measured.reused_tokens += after.reused_tokens - before.reused_tokens;
        measured.preemptions += after.num_preemptions - before.num_preemptions;
        let steps = if computed > 0 {
            &mut measured.prefill
        } else {
            &mut measured.decode
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
