//! KV cache of a recipe, computed before anything is loaded: block sizes, episodes that fit, memory beside it.

use asyncthink_engine::DEFAULT_BLOCK_SIZE;
use asyncthink_model::ModelConfig;
use asyncthink_recipe::{EngineDtype, MemoryBudget, Recipe, Stage};
use asyncthink_rollout::{EpisodeTokens, ModelCard, automatic_cache_bytes};
use asyncthink_torch::{DeviceSpec, free_bytes, open_device};
use tch::Device;

use crate::failure::Failure;

/// Memory of the GPUs that a recipe is reported for where there is none at hand, in GB as their makers count.
const GPUS_GB: [u64; 2] = [80, 141];

const GB: u64 = 1_000_000_000;

/// Bytes of a parameter and of what training keeps of it, all f32: weight, gradient, two moments.
const TRAINED_BYTES: u64 = 16;

const WEIGHT_BYTES: u64 = 4;

/// Memory of a stage on the device beside the cache, in bytes.
struct Resident {
    weights: u64,
    training: u64,
    reference: u64,
    sampling: u64,
}

impl Resident {
    fn total(&self) -> u64 {
        self.weights + self.training + self.reference + self.sampling
    }
}

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
    let is_bf16 = recipe.engine.dtype == EngineDtype::Bf16;
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
    let resident = resident(stage, recipe, config, is_bf16, is_cpu);
    lines.push(format!(
        "beside the cache: weights {}, gradients and moments {}, reference model {}, copy for sampling {}; activations are not counted",
        size(resident.weights),
        size(resident.training),
        size(resident.reference),
        size(resident.sampling),
    ));
    let left = |free: u64, device: Device| {
        let free = free.saturating_sub(resident.total());
        match budget {
            MemoryBudget::Share(share) => part(free, share),
            _ => automatic_cache_bytes(free, device),
        }
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

fn resident(
    stage: Stage,
    recipe: &Recipe,
    config: &ModelConfig,
    is_bf16: bool,
    is_cpu: bool,
) -> Resident {
    let parameters = u64::try_from(config.num_parameters()).unwrap_or(0);
    let trains = stage == Stage::Grpo;
    let has_reference = recipe.grpo.as_ref().is_some_and(|grpo| grpo.kl_beta > 0.0);
    // Adapters are a small share of the parameters, and their base serves as the reference.
    let is_full = recipe.lora.is_none();
    let own_copy = is_bf16 || is_cpu || (trains && !is_full);
    Resident {
        weights: parameters * WEIGHT_BYTES,
        training: if trains && is_full {
            parameters * (TRAINED_BYTES - WEIGHT_BYTES)
        } else {
            0
        },
        reference: if trains && has_reference && is_full {
            parameters * WEIGHT_BYTES
        } else {
            0
        },
        sampling: if own_copy {
            parameters * if is_bf16 { 2 } else { WEIGHT_BYTES }
        } else {
            0
        },
    }
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
