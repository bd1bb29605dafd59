//! The engine over a decoder: one flat batch a step, one cache slot an agent.

use std::collections::BTreeMap;

use asyncthink_data::TokenId;
use asyncthink_model::{Decoder, KvCache, StepBatch};
use tch::Kind;

use crate::error::{Error, Result};
use crate::sampler::{AgentSampler, Temperature};
use crate::slots::SlotPool;
use crate::{AgentId, Engine, Request, Sampled};

/// Slots are sized in multiples of this many tokens, so that the cache grows rarely.
const CAPACITY_STEP_TOKENS: usize = 64;

/// Rows of one call of the model; a step of more is several calls. It bounds what long prompts of many agents need at a
/// time. One sequence is never cut, so that it may need more alone.
const MAX_CALL_ROWS: usize = 16_384;

/// Limits of a [`BatchedEngine`].
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Agents held at once.
    pub max_agents: usize,
    /// Sampling temperature.
    pub temperature: Temperature,
}

/// What an engine has computed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Steps taken.
    pub num_steps: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Tokens given (prompts, injected text) and run through the model.
    pub prefilled_tokens: u64,
}

/// Decodes over a borrowed [`Decoder`]: the weights that training updates are the weights that sample.
#[derive(Debug)]
pub struct BatchedEngine<'a> {
    decoder: &'a Decoder,
    config: EngineConfig,
    cache: KvCache,
    slots: SlotPool,
    agents: BTreeMap<u64, Sequence>,
    by_name: BTreeMap<AgentId, u64>,
    next_arrival: u64,
    stats: EngineStats,
    max_call_rows: usize,
}

#[derive(Debug)]
struct Sequence {
    agent: AgentId,
    slot: i64,
    cached_tokens: usize,
    /// Tokens that the cache does not hold yet; the last sampled one is always among them.
    pending: Vec<i64>,
    running: bool,
    sampler: AgentSampler,
}

impl<'a> BatchedEngine<'a> {
    /// Prepares an engine; the cache starts small and grows with the longest sequence.
    ///
    /// # Errors
    /// When the cache cannot be allocated.
    pub fn new(decoder: &'a Decoder, config: EngineConfig) -> Result<Self> {
        let num_slots = i64::try_from(config.max_agents).unwrap_or(i64::MAX);
        let cache = KvCache::new(
            decoder.config(),
            num_slots,
            to_size(CAPACITY_STEP_TOKENS),
            decoder.kind(),
            decoder.device(),
        )?;
        Ok(Self {
            decoder,
            config,
            cache,
            slots: SlotPool::new(num_slots),
            agents: BTreeMap::new(),
            by_name: BTreeMap::new(),
            next_arrival: 0,
            stats: EngineStats::default(),
            max_call_rows: MAX_CALL_ROWS,
        })
    }

    /// Work done since the engine was made.
    pub fn stats(&self) -> EngineStats {
        self.stats
    }

    fn sequence(&mut self, agent: AgentId) -> Result<&mut Sequence> {
        self.by_name
            .get(&agent)
            .and_then(|arrival| self.agents.get_mut(arrival))
            .ok_or(Error::UnknownAgent(agent))
    }

    fn check_length(&self, agent: AgentId, num_tokens: usize) -> Result<()> {
        let max_tokens = self.max_sequence_tokens();
        if num_tokens > max_tokens {
            return Err(Error::TooLong {
                agent,
                num_tokens,
                max_tokens,
            });
        }
        Ok(())
    }

    /// Makes every slot large enough for the longest running sequence.
    fn make_room(&mut self) -> Result<()> {
        let longest = self
            .agents
            .values()
            .filter(|sequence| sequence.running)
            .map(|sequence| sequence.cached_tokens + sequence.pending.len())
            .max()
            .unwrap_or(0);
        if to_size(longest) > self.cache.capacity_tokens() {
            // Half as much again: the copies stay a small share of the work however long the sequences get.
            let wanted = longest + longest / 2;
            let rounded = wanted
                .next_multiple_of(CAPACITY_STEP_TOKENS)
                .min(self.max_sequence_tokens().max(longest));
            self.cache.grow(to_size(rounded))?;
        }
        Ok(())
    }

    /// Log-probs `[rows, vocab]` on the host, row after row, of the next token of each running sequence.
    fn next_logprobs(&mut self) -> Result<(Vec<f32>, usize)> {
        let (mut host, mut vocab) = (Vec::new(), 0);
        let mut call = Call::default();
        for sequence in self.agents.values_mut().filter(|sequence| sequence.running) {
            if !call.ids.is_empty() && call.ids.len() + sequence.pending.len() > self.max_call_rows
            {
                vocab = call.run(
                    self.decoder,
                    &self.cache,
                    self.config.temperature,
                    &mut host,
                )?;
                call = Call::default();
            }
            for (offset, &id) in sequence.pending.iter().enumerate() {
                call.ids.push(id);
                call.positions
                    .push(to_size(sequence.cached_tokens + offset));
                call.slots.push(sequence.slot);
            }
            call.sample_rows.push(to_size(call.ids.len()) - 1);
            self.stats.prefilled_tokens += sequence.pending.len() as u64 - 1;
            sequence.cached_tokens += sequence.pending.len();
            sequence.pending.clear();
        }
        if !call.ids.is_empty() {
            vocab = call.run(
                self.decoder,
                &self.cache,
                self.config.temperature,
                &mut host,
            )?;
        }
        Ok((host, vocab))
    }
}

/// A count as libtorch takes it.
fn to_size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The rows of one call of the model: whole sequences' pending tokens.
#[derive(Debug, Default)]
struct Call {
    ids: Vec<i64>,
    positions: Vec<i64>,
    slots: Vec<i64>,
    sample_rows: Vec<i64>,
}

impl Call {
    /// Appends the sampled rows' log-probs to `host`; gives the vocabulary's size.
    fn run(
        &self,
        decoder: &Decoder,
        cache: &KvCache,
        temperature: Temperature,
        host: &mut Vec<f32>,
    ) -> Result<usize> {
        let Self {
            ids,
            positions,
            slots,
            sample_rows,
        } = self;
        let logits = decoder.step(
            &StepBatch {
                ids,
                positions,
                slots,
                sample_rows,
            },
            cache,
        )?;
        let vocab = usize::try_from(logits.size()[1]).unwrap_or(0);
        let logprobs = (logits / temperature.divisor()).f_log_softmax(-1, Kind::Float)?;
        let (start, num_values) = (host.len(), logprobs.numel());
        host.resize(start + num_values, 0.0);
        logprobs
            .f_to_device(tch::Device::Cpu)?
            .f_contiguous()?
            .f_copy_data(&mut host[start..], num_values)?;
        Ok(vocab)
    }
}

impl Engine for BatchedEngine<'_> {
    fn add(&mut self, request: Request) -> Result<()> {
        let Request {
            agent,
            prompt,
            seed,
        } = request;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt(agent));
        }
        if self.by_name.contains_key(&agent) {
            return Err(Error::DuplicateAgent(agent));
        }
        self.check_length(agent, prompt.len())?;
        let slot = self.slots.take().ok_or(Error::Full {
            max_agents: self.config.max_agents,
        })?;
        let sequence = Sequence {
            agent,
            slot,
            cached_tokens: 0,
            pending: prompt.iter().map(|token| i64::from(token.0)).collect(),
            running: true,
            sampler: AgentSampler::new(seed),
        };
        self.by_name.insert(agent, self.next_arrival);
        self.agents.insert(self.next_arrival, sequence);
        self.next_arrival += 1;
        Ok(())
    }

    fn extend(&mut self, agent: AgentId, ids: &[TokenId]) -> Result<()> {
        let sequence = self.sequence(agent)?;
        let num_tokens = sequence.cached_tokens + sequence.pending.len() + ids.len();
        self.check_length(agent, num_tokens)?;
        let sequence = self.sequence(agent)?;
        sequence
            .pending
            .extend(ids.iter().map(|token| i64::from(token.0)));
        sequence.running = true;
        Ok(())
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.sequence(agent)?.running = false;
        Ok(())
    }

    fn remove(&mut self, agent: AgentId) -> Result<()> {
        let arrival = self
            .by_name
            .remove(&agent)
            .ok_or(Error::UnknownAgent(agent))?;
        if let Some(sequence) = self.agents.remove(&arrival) {
            self.slots.give_back(sequence.slot);
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Vec<Sampled>> {
        self.make_room()?;
        if !self.agents.values().any(|sequence| sequence.running) {
            return Ok(Vec::new());
        }
        let (logprobs, vocab) = self.next_logprobs()?;
        let greedy = self.config.temperature.is_greedy();
        let running = self.agents.values_mut().filter(|sequence| sequence.running);
        let sampled = running
            .zip(logprobs.chunks_exact(vocab))
            .map(|(sequence, row)| {
                let (token, logprob) = sequence
                    .sampler
                    .sample(row, greedy)
                    .ok_or(Error::NonFinite(sequence.agent))?;
                sequence.pending.push(i64::from(token.0));
                Ok(Sampled {
                    agent: sequence.agent,
                    token,
                    logprob,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        self.stats.num_steps += 1;
        self.stats.sampled_tokens += sampled.len() as u64;
        Ok(sampled)
    }

    fn num_free(&self) -> usize {
        self.slots.num_free()
    }

    fn max_sequence_tokens(&self) -> usize {
        usize::try_from(self.decoder.config().max_position_embeddings).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use asyncthink_model::{ModelConfig, ModelSizes};
    use tch::Device;

    use super::*;

    #[test]
    fn a_step_in_several_calls_samples_what_one_call_samples() {
        let config = ModelConfig::new(&ModelSizes {
            vocab_size: 23,
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            rope_theta: 10_000.0,
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            eos_token_id: 0,
        })
        .unwrap();
        let decoder = Decoder::init(&config, Device::Cpu, 3).unwrap();
        let run = |max_call_rows| {
            let config = EngineConfig {
                max_agents: 6,
                temperature: Temperature::new(1.0).unwrap(),
            };
            let mut engine = BatchedEngine::new(&decoder, config).unwrap();
            engine.max_call_rows = max_call_rows;
            // One prompt alone is longer than the smaller budgets.
            for (agent, len) in [3_u32, 12, 1, 5, 7, 2].into_iter().enumerate() {
                let prompt = (0..len)
                    .map(|position| TokenId(1 + position % 20))
                    .collect();
                let agent = agent as u64;
                engine
                    .add(Request {
                        agent: AgentId(agent),
                        prompt,
                        seed: agent,
                    })
                    .unwrap();
            }
            let sampled: Vec<_> = (0..10)
                .flat_map(|_| {
                    let sampled = engine.step().unwrap();
                    assert_eq!(
                        sampled.len(),
                        6,
                        "every running agent samples in every step"
                    );
                    sampled
                })
                .collect();
            (sampled, engine.stats())
        };
        let (whole, stats) = run(MAX_CALL_ROWS);
        assert_eq!(
            (
                stats.num_steps,
                stats.prefilled_tokens,
                stats.sampled_tokens
            ),
            (10, 24, 60)
        );
        for max_call_rows in [0, 1, 8, 30] {
            let (split, split_stats) = run(max_call_rows);
            assert_eq!(split_stats, stats);
            for (one, other) in split.iter().zip(&whole) {
                assert_eq!((one.agent, one.token), (other.agent, other.token));
                assert!((one.logprob - other.logprob).abs() < 1e-5);
            }
        }
    }
}
