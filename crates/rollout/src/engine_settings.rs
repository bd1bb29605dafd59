//! Engine settings of a recipe's `[engine]`.

use asyncthink_engine::{DEFAULT_BLOCK_SIZE, DEFAULT_MAX_BATCH_TOKENS, EngineSettings};
use asyncthink_model::Precision;
use asyncthink_protocol::Capacity;
use asyncthink_recipe::{EngineDtype, EngineSection};
use tch::{Device, Kind};

/// Agents decoding at a time on a CPU: beyond this a step takes as much longer as it does more.
const MAX_AGENTS_CPU: usize = 512;

/// Agents decoding at a time on a GPU, whose steps are bound by memory traffic for the weights.
const MAX_AGENTS_GPU: usize = 1024;

/// Tokens of a step on a GPU, where larger matrix products are faster.
const MAX_BATCH_TOKENS_GPU: usize = 8192;

/// Settings of an engine that has room for one episode at the least.
pub fn engine_settings(
    section: &EngineSection,
    device: Device,
    precision: Precision,
    capacity: Capacity,
    max_cache_bytes: Option<u64>,
) -> EngineSettings {
    let (max_agents, max_batch_tokens) = if device == Device::Cpu {
        (MAX_AGENTS_CPU, DEFAULT_MAX_BATCH_TOKENS)
    } else {
        (MAX_AGENTS_GPU, MAX_BATCH_TOKENS_GPU)
    };
    let capacity = capacity.get() as usize;
    EngineSettings {
        max_agents: section.max_agents.unwrap_or(max_agents).max(capacity),
        max_batch_tokens: section
            .max_batch_tokens
            .unwrap_or(max_batch_tokens)
            .max(capacity),
        block_size: section.block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
        cuda_graphs: section.cuda_graphs.unwrap_or(true),
        max_cache_bytes,
        precision,
        dtype: match section.dtype {
            EngineDtype::Auto => None,
            EngineDtype::F32 => Some(Kind::Float),
            EngineDtype::Bf16 => Some(Kind::BFloat16),
        },
    }
}
