//! Memory settings of a stage on a machine.

use asyncthink_engine::DEFAULT_BLOCK_SIZE;
use asyncthink_model::{ModelConfig, Parallelism, Precision, num_adapter_parameters};
use asyncthink_recipe::{EngineDtype, MemoryBudget, Shard};
use asyncthink_rollout::{EpisodeTokens, engine_settings};
use asyncthink_torch::cpu_has_bf16_products;
use tch::{Device, Kind};

use super::settings::{MemorySettings, SamplingMemory, Trained};
use crate::settings::{GrpoSettings, RunSettings, SftSettings};

/// Machine of a rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Device of the model.
    pub device: Device,
    /// CPU threads of the rank.
    pub num_threads: usize,
    /// Ranks in all.
    pub world_size: usize,
    /// Bytes that are free for this rank before it loads anything; `None` where that cannot be told.
    pub free_bytes: Option<u64>,
    /// Bytes of host memory that are free; `None` where that cannot be told, or the machine is not at hand.
    pub free_host_bytes: Option<u64>,
}

impl Machine {
    /// Bytes that `auto` values are chosen to fit in.
    pub fn target_bytes(&self, budget: Option<MemoryBudget>) -> Option<u64> {
        match budget.unwrap_or_default() {
            // What a prediction may be wrong by.
            MemoryBudget::Auto => self.free_bytes.map(|free| free - free / 10),
            _ => self.limit_bytes(budget),
        }
    }

    /// Bytes that a run may not be predicted to exceed.
    pub fn limit_bytes(&self, budget: Option<MemoryBudget>) -> Option<u64> {
        match budget.unwrap_or_default() {
            MemoryBudget::Auto => self.free_bytes,
            budget => budget.limit_bytes(self.free_bytes).ok().flatten(),
        }
    }
}

/// The number types that a device computes in where the recipe asks for `precision`.
pub(crate) fn precision_on(
    device: Device,
    precision: Precision,
    allow_slow_bf16: bool,
) -> Precision {
    let is_slow = device == Device::Cpu
        && precision.compute() == Kind::BFloat16
        && !allow_slow_bf16
        && !cpu_has_bf16_products();
    if is_slow { Precision::F32 } else { precision }
}

fn bytes_of(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

fn of_run(
    run: &RunSettings,
    config: &ModelConfig,
    machine: &Machine,
    longest_row: u64,
    rank_tokens: u64,
) -> MemorySettings {
    let policy = &run.policy;
    let precision = precision_on(machine.device, policy.precision, run.allow_slow_bf16);
    let is_cpu = machine.device == Device::Cpu;
    let parallelism =
        Parallelism::of_threads(config.num_parameters(), machine.device, machine.num_threads);
    MemorySettings {
        is_cpu,
        element_bytes: bytes_of(precision.compute()),
        trained: match &policy.lora {
            None => Trained::All,
            Some(lora) => Trained::Adapters(num_adapter_parameters(lora, config)),
        },
        offloads_optimizer: policy.offloads_optimizer && !is_cpu,
        shard: policy.shard,
        world_size: machine.world_size as u64,
        micro_batches_per_gather: policy.micro_batches_per_gather as u64,
        micro_batch_tokens: super::CANDIDATE_TOKENS[0],
        rank_tokens: rank_tokens.max(longest_row),
        longest_row,
        activation_checkpointing: false,
        num_workers: match policy.shard {
            Shard::Full => 1,
            Shard::Optimizer => parallelism.num_workers() as u64,
        },
        has_reference: false,
        sampling: None,
    }
}

impl SftSettings {
    /// What the memory of the stage depends on; `longest_row` in tokens, if the rows are known.
    pub fn memory(
        &self,
        config: &ModelConfig,
        machine: &Machine,
        longest_row: Option<usize>,
    ) -> MemorySettings {
        let batch_tokens = self.section.batch_tokens as u64;
        let longest_row = longest_row.map_or(0, |tokens| tokens as u64);
        let rank_tokens = batch_tokens.div_ceil(machine.world_size as u64);
        of_run(&self.run, config, machine, longest_row, rank_tokens)
    }
}

impl GrpoSettings {
    /// What the memory of the stage depends on, for prompts of so many tokens. Episodes are taken to use up their budgets.
    pub fn memory(
        &self,
        config: &ModelConfig,
        machine: &Machine,
        prompt_tokens: usize,
    ) -> MemorySettings {
        let context = usize::try_from(config.max_position_embeddings).unwrap_or(usize::MAX);
        let rules = self.run.card.rollout_settings();
        let episode = EpisodeTokens::new(&rules, prompt_tokens, context);
        let num_prompts = self.section.prompts_per_step.div_ceil(machine.world_size) as u64;
        let num_episodes = num_prompts * self.section.group_size as u64;
        let longest = episode.organizer.max(episode.worker) as u64;
        let workers = (episode.num_workers * episode.worker) as u64;
        let rank_tokens = num_episodes * (episode.organizer as u64 + workers);
        let precision = precision_on(
            machine.device,
            self.run.policy.precision,
            self.run.allow_slow_bf16,
        );
        let dtype = match self.engine.dtype {
            EngineDtype::Auto => precision.compute(),
            EngineDtype::F32 => Kind::Float,
            EngineDtype::Bf16 => Kind::BFloat16,
        };
        let engine = engine_settings(
            &self.engine,
            machine.device,
            precision,
            rules.protocol.capacity,
            None,
        );
        let block_size = self.engine.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
        let values = 2 * config.num_key_value_heads * config.head_dim;
        let token_bytes =
            u64::try_from(values).unwrap_or(0) * config.num_hidden_layers as u64 * bytes_of(dtype);
        // The prompt is computed once for a group.
        let prompt_blocks = prompt_tokens / block_size.max(1);
        let running = num_episodes.min(engine.max_agents as u64);
        let own_blocks = episode.num_blocks(block_size).saturating_sub(prompt_blocks) as u64;
        let blocks = running * own_blocks + num_prompts * prompt_blocks as u64;
        let wanted = blocks * block_size as u64 * token_bytes;
        MemorySettings {
            has_reference: self.needs_reference(),
            sampling: Some(SamplingMemory {
                element_bytes: bytes_of(dtype),
                cache_bytes: match self.engine.cache_memory {
                    Some(budget) => match budget.limit_bytes(machine.free_bytes) {
                        Ok(Some(limit)) => wanted.min(limit),
                        _ => wanted,
                    },
                    None => wanted,
                },
                batch_tokens: engine.max_batch_tokens as u64,
            }),
            ..of_run(&self.run, config, machine, longest, rank_tokens)
        }
    }

    /// Whether the cache takes what is left over.
    pub fn is_cache_automatic(&self) -> bool {
        matches!(self.engine.cache_memory, None | Some(MemoryBudget::Auto))
    }
}
