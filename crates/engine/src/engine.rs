//! The engine over a decoder: one flat batch a step, one cache slot an agent.

use std::collections::BTreeMap;

use asyncthink_data::TokenId;
use asyncthink_model::{Decoder, KvCache, ModelConfig};
use tch::Device;

use crate::error::{Error, Result};
use crate::request::{AgentId, Request, Sampled};
use crate::runner::{MAX_CALL_ROWS, ModelRunner, to_size};
use crate::sequence::Sequence;
use crate::settings::EngineSettings;
use crate::slots::SlotPool;

/// Slots are sized in multiples of this many tokens, so that the cache grows rarely.
const CAPACITY_STEP_TOKENS: usize = 64;

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

/// Decodes many agents at once over a [`Decoder`] that is lent for each step: the weights that training updates are the
/// weights that sample.
///
/// It outlives a rollout. Its KV cache is allocated once and grows with the longest sequence; after an update of the weights
/// [`Self::weights_changed`] forgets what was computed with the old ones.
#[derive(Debug)]
pub struct BatchedEngine {
    settings: EngineSettings,
    config: ModelConfig,
    device: Device,
    cache: KvCache,
    slots: SlotPool,
    sequences: BTreeMap<u64, Sequence>,
    by_name: BTreeMap<AgentId, u64>,
    next_arrival: u64,
    stats: EngineStats,
    runner: ModelRunner,
}

impl BatchedEngine {
    /// Prepares an engine for decoders of a configuration on a device; the cache starts small and grows with the longest
    /// sequence.
    ///
    /// # Errors
    /// When the cache cannot be allocated.
    pub fn new(config: &ModelConfig, device: Device, settings: EngineSettings) -> Result<Self> {
        let num_slots = to_size(settings.max_agents);
        let capacity = to_size(CAPACITY_STEP_TOKENS);
        let kind = settings.precision.compute();
        Ok(Self {
            settings,
            config: config.clone(),
            device,
            cache: KvCache::new(config, num_slots, capacity, kind, device)?,
            slots: SlotPool::new(num_slots),
            sequences: BTreeMap::new(),
            by_name: BTreeMap::new(),
            next_arrival: 0,
            stats: EngineStats::default(),
            runner: ModelRunner {
                max_call_rows: MAX_CALL_ROWS,
            },
        })
    }

    /// Whether the engine was made for such a decoder and with these settings.
    pub fn fits(&self, decoder: &Decoder, settings: EngineSettings) -> bool {
        self.settings == settings
            && self.device == decoder.device()
            && self.config == *decoder.config()
    }

    /// Forgets every agent: what the cache holds of them was computed with other weights. The cache's memory is kept.
    pub fn weights_changed(&mut self) {
        self.sequences.clear();
        self.by_name.clear();
        self.slots = SlotPool::new(self.cache.num_slots());
    }

    /// Work done since the engine was made.
    pub fn stats(&self) -> EngineStats {
        self.stats
    }

    /// Admits an agent; it samples its first token in the next step.
    ///
    /// # Errors
    /// When the engine is full, the name is taken, or the prompt is empty or longer than the model's context.
    pub fn add(&mut self, request: &Request) -> Result<()> {
        let agent = request.agent;
        if request.prompt.is_empty() {
            return Err(Error::EmptyPrompt(agent));
        }
        if self.by_name.contains_key(&agent) {
            return Err(Error::DuplicateAgent(agent));
        }
        self.check_length(agent, request.prompt.len())?;
        let slot = self.slots.take().ok_or(Error::Full {
            max_agents: self.settings.max_agents,
        })?;
        self.by_name.insert(agent, self.next_arrival);
        self.sequences
            .insert(self.next_arrival, Sequence::new(request, slot));
        self.next_arrival += 1;
        Ok(())
    }

    /// Appends given tokens after what the agent has, to be prefilled in the next step; a paused agent runs again.
    ///
    /// # Errors
    /// When the agent is unknown or would outgrow the model's context.
    pub fn extend(&mut self, agent: AgentId, ids: &[TokenId]) -> Result<()> {
        let num_tokens = self.num_tokens(agent)? + ids.len();
        self.check_length(agent, num_tokens)?;
        let sequence = self.sequence(agent)?;
        sequence.append(ids);
        sequence.is_running = true;
        Ok(())
    }

    /// Stops sampling for an agent; its cache is kept.
    ///
    /// # Errors
    /// When the agent is unknown.
    pub fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.sequence(agent)?.is_running = false;
        Ok(())
    }

    /// Forgets an agent and frees its cache.
    ///
    /// # Errors
    /// When the agent is unknown.
    pub fn remove(&mut self, agent: AgentId) -> Result<()> {
        let arrival = self
            .by_name
            .remove(&agent)
            .ok_or(Error::UnknownAgent(agent))?;
        if let Some(sequence) = self.sequences.remove(&arrival) {
            self.slots.give_back(sequence.slot);
        }
        Ok(())
    }

    /// Samples one token for every running agent, in order of admission.
    ///
    /// # Errors
    /// When the model fails.
    pub fn step(&mut self, decoder: &Decoder) -> Result<Vec<Sampled>> {
        self.make_room()?;
        let running = || self.sequences.values().filter(|one| one.is_running);
        let num_running = running().count();
        if num_running == 0 {
            return Ok(Vec::new());
        }
        let num_pending: usize = running().map(|one| one.pending.len()).sum();
        let temperature = self.settings.temperature;
        let logprobs = self.runner.next_logprobs(
            self.sequences.values_mut().filter(|one| one.is_running),
            decoder,
            &self.cache,
            temperature,
        )?;
        // The last pending token of each sequence is the one that was sampled.
        self.stats.prefilled_tokens += (num_pending - num_running) as u64;
        let running = self.sequences.values_mut().filter(|one| one.is_running);
        let sampled = running
            .zip(logprobs.rows())
            .map(|(sequence, row)| {
                let (token, logprob) = sequence
                    .sampler
                    .sample(row, temperature.is_greedy())
                    .ok_or(Error::NonFinite(sequence.agent))?;
                sequence.append(&[token]);
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

    /// Agents that can still be admitted.
    pub fn num_free(&self) -> usize {
        self.slots.num_free()
    }

    /// Most tokens that one sequence may hold.
    pub fn max_sequence_tokens(&self) -> usize {
        usize::try_from(self.config.max_position_embeddings).unwrap_or(0)
    }

    /// Tokens that an agent has: prompt, sampled and given ones.
    ///
    /// # Errors
    /// When the agent is unknown.
    pub fn num_tokens(&self, agent: AgentId) -> Result<usize> {
        self.by_name
            .get(&agent)
            .and_then(|arrival| self.sequences.get(arrival))
            .map(Sequence::num_tokens)
            .ok_or(Error::UnknownAgent(agent))
    }

    fn sequence(&mut self, agent: AgentId) -> Result<&mut Sequence> {
        self.by_name
            .get(&agent)
            .and_then(|arrival| self.sequences.get_mut(arrival))
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

    /// Fails where slots of `num_tokens` tokens would take more than the cache may.
    fn check_budget(&self, num_tokens: usize) -> Result<()> {
        let num_slots = self.settings.max_agents;
        let needed_bytes = self.cache.bytes_of(to_size(num_tokens));
        match self.settings.max_cache_bytes {
            Some(budget_bytes) if needed_bytes > budget_bytes => Err(Error::CacheBudget {
                num_slots,
                num_tokens,
                needed_bytes,
                budget_bytes,
            }),
            _ => Ok(()),
        }
    }

    /// Makes every slot large enough for the longest running sequence.
    fn make_room(&mut self) -> Result<()> {
        let longest = self
            .sequences
            .values()
            .filter(|sequence| sequence.is_running)
            .map(Sequence::num_tokens)
            .max()
            .unwrap_or(0);
        if to_size(longest) > self.cache.capacity_tokens() {
            // Half as much again: the copies stay a small share of the work however long the sequences get.
            let wanted = longest + longest / 2;
            let limit = self.max_sequence_tokens().max(longest);
            let round = |tokens: usize| tokens.next_multiple_of(CAPACITY_STEP_TOKENS).min(limit);
            // Near the end of a budget the cache grows by what is needed and no more.
            let capacity = match self.check_budget(round(wanted)) {
                Ok(()) => round(wanted),
                Err(_) => round(longest),
            };
            self.check_budget(capacity)?;
            self.cache.grow(to_size(capacity))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Temperature;
    use asyncthink_model::ModelSizes;

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
            let settings = EngineSettings::new(6, Temperature::new(1.0).unwrap());
            let mut engine = BatchedEngine::new(&config, Device::Cpu, settings).unwrap();
            engine.runner.max_call_rows = max_call_rows;
            // One prompt alone is longer than the smaller budgets.
            for (agent, len) in [3_u32, 12, 1, 5, 7, 2].into_iter().enumerate() {
                let prompt = (0..len)
                    .map(|position| TokenId(1 + position % 20))
                    .collect();
                let agent = agent as u64;
                engine
                    .add(&Request {
                        agent: AgentId(agent),
                        prompt,
                        seed: agent,
                    })
                    .unwrap();
            }
            let sampled: Vec<_> = (0..10)
                .flat_map(|_| {
                    let sampled = engine.step(&decoder).unwrap();
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

    #[test]
    fn a_cache_beyond_its_budget_is_refused_with_the_arithmetic() {
        let config = ModelConfig::new(&ModelSizes {
            vocab_size: 23,
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            rope_theta: 10_000.0,
            max_position_embeddings: 256,
            tie_word_embeddings: true,
            eos_token_id: 0,
        })
        .unwrap();
        let decoder = Decoder::init(&config, Device::Cpu, 3).unwrap();
        // Keys and values of 2 layers, 2 heads of 8 values, 4 bytes each: 256 bytes a token.
        let token_bytes = 2 * 2 * 2 * 8 * 4;
        let mut settings = EngineSettings::new(2, Temperature::new(1.0).unwrap());
        settings.max_cache_bytes = Some(2 * 128 * token_bytes);
        let mut engine = BatchedEngine::new(&config, Device::Cpu, settings).unwrap();
        let request = |agent, len| Request {
            agent: AgentId(agent),
            prompt: vec![TokenId(1); len],
            seed: agent,
        };
        // Half as much again as 100 tokens would be too much; 128 are enough.
        engine.add(&request(1, 100)).unwrap();
        engine.step(&decoder).unwrap();
        engine.add(&request(2, 150)).unwrap();
        let error = engine.step(&decoder).unwrap_err().to_string();
        assert_eq!(
            error,
            "the KV cache of 2 sequences of 192 tokens needs 98304 bytes, more than its budget of 65536"
        );
    }
}
