//! KV cache of a recipe, computed before anything is loaded: block sizes, episodes that fit, memory beside it.

use asyncthink_engine::DEFAULT_BLOCK_SIZE;
use asyncthink_model::ModelConfig;
use asyncthink_recipe::{ComputeFormat, EngineDtype, MemoryBudget, Recipe, Stage};
use asyncthink_rollout::{EpisodeTokens, ModelCard, automatic_cache_bytes};
use asyncthink_torch::{DeviceSpec, cpu_has_bf16_products, free_bytes, open_device};
use tch::Device;

use crate::failure::Failure;
use crate::memory_report::StageMemory;

/// Memory of the GPUs that a recipe is reported for where there is none at hand, in GB as their makers count.
const GPUS_GB: [u64; 2] = [80, 141];

const GB: u64 = 1_000_000_000;

const WEIGHT_BYTES: u64 = 4;

/// Lines about the cache of a stage that samples; none of others.
///
/// # Errors
/// When a budget in bytes, or a GPU at hand, cannot hold one episode.
pub(crate) fn lines(
    stage: Stage,
    recipe: &Recipe,
    config: &ModelConfig,
    prompt_tokens: usize,
) -> Result<Vec<String>, Failure> {
    if !matches!(stage, Stage::Grpo | Stage::Eval) {
        return Ok(Vec::new());
    }
    let device: DeviceSpec = recipe.device.to_string().parse()?;
    let is_cpu = device == DeviceSpec::Cpu;
    let block_size = recipe.engine.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
    let is_bf16 = match recipe.engine.dtype {
        EngineDtype::Auto => stage == Stage::Grpo && computes_in_bf16(recipe, is_cpu),
        EngineDtype::F32 => false,
        EngineDtype::Bf16 => true,
    };
    let cache = Cache::new(config, block_size, is_bf16);
    let context = usize::try_from(config.max_position_embeddings).unwrap_or(usize::MAX);
    let card = ModelCard::new(&recipe.prompts, &recipe.protocol);
    let episode = EpisodeTokens::new(&card.rollout_settings(), prompt_tokens, context);
    let needed_blocks = episode.num_blocks(block_size) as u64;
    let mut lines = vec![format!(
        "cache: {} a block of {block_size} tokens in {}; an episode of {episode} needs up to {needed_blocks} blocks, {}",
        size(cache.block_bytes),
        if is_bf16 { "bf16" } else { "f32" },
        size(needed_blocks * cache.block_bytes),
    )];
    let state = |budget: u64, of: &str| -> Result<String, Failure> {
        let num_blocks = budget / cache.block_bytes;
        let holds = format!(
            "{}{of}: {num_blocks} blocks, {} tokens, {} whole episodes",
            size(budget),
            num_blocks * block_size as u64,
            num_blocks / needed_blocks.max(1),
        );
        if num_blocks >= needed_blocks {
            return Ok(format!("cache: {holds}"));
        }
        Err(Failure::input(format!(
            "the KV cache cannot hold one episode: {holds}, and one needs {needed_blocks} blocks ({} with {episode})",
            size(needed_blocks * cache.block_bytes)
        ))
        .hint(
            "set `engine.dtype = \"bf16\"`, raise `engine.cache_memory`, shorten the budgets in `[protocol]`, or train adapters (`[model.lora]`)",
        ))
    };
    let budget = recipe.engine.cache_memory.unwrap_or_default();
    if let MemoryBudget::Bytes(bytes) = budget {
        lines.push(state(bytes, " (`engine.cache_memory`)")?);
        return Ok(lines);
    }
    let memory = StageMemory::of(stage, recipe, config, prompt_tokens)?;
    let sampled_bytes = weights_for_sampling(config, is_bf16, is_cpu);
    let left = |free: u64, device: Device| match (&memory, budget) {
        (_, MemoryBudget::Share(share)) => part(free, share),
        // Memory that training leaves.
        (Some(memory), _) => memory.on(device, Some(free)).cache_bytes.unwrap_or(0),
        (None, _) => automatic_cache_bytes(free.saturating_sub(sampled_bytes), device),
    };
    match open_device(&device)
        .ok()
        .filter(|found| found.is_cuda() != is_cpu)
    {
        Some(found) if let Some(free) = free_bytes(found) => {
            lines.push(state(
                left(free, found),
                &format!(" of {} free here", size(free)),
            )?);
        }
        _ => {
            for gb in GPUS_GB {
                let (bytes, of) = (
                    left(gb * GB, Device::Cuda(0)),
                    format!(" on a GPU of {gb} GB"),
                );
                // None of these is the machine of the run: what does not fit is said, not refused.
                let line = match state(bytes, &of) {
                    Ok(line) => line,
                    Err(_) => format!(
                        "cache: {}{of}: too little for one episode; the run would be refused there",
                        size(bytes)
                    ),
                };
                lines.push(line);
            }
        }
    }
    Ok(lines)
}

struct Cache {
    block_bytes: u64,
}

impl Cache {
    fn new(config: &ModelConfig, block_size: usize, is_bf16: bool) -> Self {
        let values = 2 * config.num_key_value_heads * config.head_dim;
        let per_layer = u64::try_from(values).unwrap_or(0) * block_size as u64;
        let element_bytes = if is_bf16 { 2 } else { 4 };
        Self {
            block_bytes: per_layer * config.num_hidden_layers as u64 * element_bytes,
        }
    }
}

/// Whether training computes in bf16 on the device.
fn computes_in_bf16(recipe: &Recipe, is_cpu: bool) -> bool {
    recipe.precision.compute == ComputeFormat::Bf16
        && (!is_cpu || recipe.precision.allow_slow_bf16 || cpu_has_bf16_products())
}

/// Bytes of the weights of an evaluation: as they are loaded, and as sampling takes them.
fn weights_for_sampling(config: &ModelConfig, is_bf16: bool, is_cpu: bool) -> u64 {
    let parameters = u64::try_from(config.num_parameters()).unwrap_or(0);
    let copy = if is_bf16 { 2 } else { WEIGHT_BYTES };
    let is_copied = is_bf16 || is_cpu;
    parameters * (WEIGHT_BYTES + if is_copied { copy } else { 0 })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a count of bytes"
)]
fn part(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share) as u64
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mib = bytes as f64 / MIB;
    if mib >= 1024.0 {
        format!("{:.1} GiB", mib / 1024.0)
    } else {
        format!("{mib:.2} MiB")
    }
}
