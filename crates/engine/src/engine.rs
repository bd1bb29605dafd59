//! The engine over a decoder: a scheduler says what each step computes, a runner computes it.

use asyncthink_data::TokenId;
use asyncthink_model::{Decoder, ModelConfig, StepBatch};
use asyncthink_torch::SamplingBatch;
use tch::Device;

use crate::agent_id::AgentId;
use crate::error::{Error, Result};
use crate::request::{Request, Sampled};
use crate::runner::{ModelRunner, runner_for};
use crate::scheduler::{Limits, Scheduler};
use crate::settings::EngineSettings;
use crate::stats::EngineStats;

/// Decodes many agents at once over a [`Decoder`] that is lent for each step: the weights that training updates are the
/// weights that sample.
///
/// It outlives a rollout. Its KV cache consists of blocks that agents share where their contexts begin alike; after an
/// update of the weights [`Self::weights_changed`] forgets what was computed with the old ones.
#[derive(Debug)]
pub struct BatchedEngine {
    settings: EngineSettings,
    config: ModelConfig,
    device: Device,
    limits: Limits,
    scheduler: Scheduler,
    runner: Box<dyn ModelRunner>,
    batch: StepBatch,
    sampling: SamplingBatch,
}

impl BatchedEngine {
    /// Prepares an engine for decoders of a configuration on a device.
    ///
    /// # Errors
    /// When a limit is 0, the budget holds no block, or no runner computes in the type asked for.
    pub fn new(config: &ModelConfig, device: Device, settings: EngineSettings) -> Result<Self> {
        let runner = runner_for(config, device, &settings)?;
        Self::with_runner(config, device, settings, runner)
    }

    pub(crate) fn with_runner(
        config: &ModelConfig,
        device: Device,
        settings: EngineSettings,
        mut runner: Box<dyn ModelRunner>,
    ) -> Result<Self> {
        let limits = limits(config, &settings, runner.block_bytes())?;
        runner.allocate(limits.num_blocks)?;
        Ok(Self {
            settings,
            config: config.clone(),
            device,
            limits,
            scheduler: Scheduler::new(limits),
            runner,
            batch: StepBatch::default(),
            sampling: SamplingBatch::default(),
        })
    }

    /// Whether the engine was made for such a decoder and with these settings.
    pub fn fits(&self, decoder: &Decoder, settings: EngineSettings) -> bool {
        self.settings == settings
            && self.device == decoder.device()
            && self.config == *decoder.config()
    }

    /// Forgets every agent and all that the cache holds, which was computed with other weights. The cache's memory is kept.
    pub fn weights_changed(&mut self) {
        self.scheduler.clear();
        self.runner.weights_changed();
    }

    /// Work done since the engine was made.
    pub fn stats(&self) -> EngineStats {
        self.scheduler.stats()
    }

    /// Admits an agent; it samples its first token once there is room for it and its prompt is computed.
    ///
    /// # Errors
    /// When the name is taken, or the prompt is empty, longer than the model's context, or larger than the cache.
    pub fn add(&mut self, request: &Request) -> Result<()> {
        self.scheduler.add(request)
    }

    /// Cuts an agent's tokens after the first `keep_tokens`, appends `ids` and lets it run on from there.
    ///
    /// # Errors
    /// When the agent is unknown, has fewer tokens, would have none, or would outgrow the model's context or the cache.
    pub fn extend(&mut self, agent: AgentId, keep_tokens: usize, ids: &[TokenId]) -> Result<()> {
        self.scheduler.extend(agent, keep_tokens, ids)
    }

    /// Stops sampling for an agent until it is extended or resumed; its blocks are kept while there is room.
    ///
    /// # Errors
    /// When the agent is unknown.
    pub fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.scheduler.pause(agent)
    }

    /// Lets a paused agent sample on from where it stopped. One that has ended itself stays as it is.
    ///
    /// # Errors
    /// When the agent is unknown.
    pub fn resume(&mut self, agent: AgentId) -> Result<()> {
        self.scheduler.resume(agent)
    }

    /// Forgets an agent and frees its blocks.
    ///
    /// # Errors
    /// When the agent is unknown.
    pub fn remove(&mut self, agent: AgentId) -> Result<()> {
        self.scheduler.remove(agent)
    }

    /// Computes one step: one token of every agent that decodes, and parts of the prompts of others. There may be no
    /// sampled token while [`Self::has_work`].
    ///
    /// # Errors
    /// When the model fails, its logits are not finite, or a sequence outgrows the cache.
    pub fn step(&mut self, decoder: &Decoder) -> Result<Vec<Sampled>> {
        self.scheduler
            .schedule(&mut self.batch, &mut self.sampling)?;
        if self.batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let result = self.runner.run(decoder, &self.batch, &self.sampling);
        let rows = result.inspect_err(|_| self.scheduler.fail_step())?;
        let mut sampled = Vec::with_capacity(rows.len());
        self.scheduler.commit(&rows, &mut sampled)?;
        Ok(sampled)
    }

    /// Whether an agent runs or waits to run.
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// Agents that may be added and still all run at a time. More may be added: they wait.
    pub fn num_free(&self) -> usize {
        let num_agents = self.scheduler.num_agents();
        self.limits.max_running.saturating_sub(num_agents)
    }

    /// Most tokens that one sequence may hold.
    pub fn max_sequence_tokens(&self) -> usize {
        self.limits.max_sequence_tokens
    }

    /// Tokens that an agent has: prompt, sampled and given ones.
    ///
    /// # Errors
    /// When the agent is unknown.
    pub fn num_tokens(&self, agent: AgentId) -> Result<usize> {
        self.scheduler.num_tokens(agent)
    }

    /// Blocks of the KV cache.
    pub fn num_blocks(&self) -> usize {
        self.limits.num_blocks
    }

    /// Tokens of one block.
    pub fn block_size(&self) -> usize {
        self.limits.block_size
    }

    /// Bytes of keys and values that one block takes in all layers.
    pub fn block_bytes(&self) -> u64 {
        self.limits.block_bytes
    }
}

/// Limits of the scheduler that follow from the settings and the model.
fn limits(config: &ModelConfig, settings: &EngineSettings, block_bytes: u64) -> Result<Limits> {
    for (name, value) in [
        ("max_agents", settings.max_agents),
        ("max_batch_tokens", settings.max_batch_tokens),
        ("block_size", settings.block_size),
    ] {
        if value == 0 {
            return Err(Error::Zero(name));
        }
    }
    let max_sequence_tokens = usize::try_from(config.max_position_embeddings).unwrap_or(0);
    let most = max_sequence_tokens
        .div_ceil(settings.block_size)
        .saturating_mul(settings.max_agents)
        // Blocks are counted in i32, as the kernels do.
        .min(usize::try_from(i32::MAX).unwrap_or(usize::MAX));
    let within = |budget: u64| usize::try_from(budget / block_bytes.max(1)).unwrap_or(usize::MAX);
    let num_blocks = settings
        .max_cache_bytes
        .map_or(most, |budget| most.min(within(budget)));
    let limits = Limits {
        max_running: settings.max_agents.min(settings.max_batch_tokens),
        max_batch_tokens: settings.max_batch_tokens,
        block_size: settings.block_size,
        num_blocks,
        max_sequence_tokens,
        block_bytes,
        budget_bytes: settings
            .max_cache_bytes
            .unwrap_or(block_bytes.saturating_mul(num_blocks as u64)),
    };
    limits.check_fits(1)?;
    Ok(limits)
}

#[cfg(test)]
mod tests;
