//! Memory of the KV cache: how much it may take, and whether that is enough.

use asyncthink_engine::BatchedEngine;
use asyncthink_recipe::MemoryBudget;
use asyncthink_torch::free_bytes;
use tch::Device;

use crate::error::{Error, Result};
use crate::query::Query;
use crate::settings::RolloutSettings;

/// Free memory of a GPU that `auto` leaves alone, in bytes: activations of a step.
const GPU_RESERVE_BYTES: u64 = 1 << 30;

/// Bytes that the cache may take on a device; `None` for no limit.
///
/// `auto` is half of what is free on a CPU, and on a GPU what is free less a tenth and 1 GiB; no limit where that cannot be
/// told.
///
/// # Errors
/// For a share of memory that cannot be told.
pub fn cache_budget(budget: Option<MemoryBudget>, device: Device) -> Result<Option<u64>, String> {
    let free = free_bytes(device);
    match budget.unwrap_or_default() {
        MemoryBudget::Auto => Ok(free.map(|free| automatic_cache_bytes(free, device))),
        budget => budget.limit_bytes(free),
    }
}

/// Bytes that the cache takes by itself where so many are free on a device.
pub fn automatic_cache_bytes(free: u64, device: Device) -> u64 {
    if device == Device::Cpu {
        free / 2
    } else {
        (free - free / 10).saturating_sub(GPU_RESERVE_BYTES)
    }
}

/// Tokens of an episode whose agents use up their budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpisodeTokens {
    /// Prompt and budget of the organizer.
    pub organizer: usize,
    /// Workers at a time.
    pub num_workers: usize,
    /// Budget of one of them.
    pub worker: usize,
}

impl EpisodeTokens {
    /// Those of an organizer with a prompt of `prompt_tokens`, none longer than the context.
    pub fn new(settings: &RolloutSettings, prompt_tokens: usize, context_tokens: usize) -> Self {
        let organizer_budget = settings
            .organizer_total_tokens
            .unwrap_or(settings.organizer_max_tokens);
        Self {
            organizer: (prompt_tokens + organizer_budget).min(context_tokens),
            num_workers: settings.protocol.capacity.max_workers() as usize,
            worker: settings.worker_max_tokens.min(context_tokens),
        }
    }

    /// Blocks of `block_size` tokens that hold them, none shared.
    pub fn num_blocks(&self, block_size: usize) -> usize {
        let blocks = |tokens: usize| tokens.div_ceil(block_size.max(1));
        blocks(self.organizer) + self.num_workers * blocks(self.worker)
    }
}

impl std::fmt::Display for EpisodeTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            organizer,
            num_workers,
            worker,
        } = self;
        let workers = if *num_workers == 1 {
            "worker"
        } else {
            "workers"
        };
        write!(
            f,
            "an organizer of {organizer} tokens and {num_workers} {workers} of {worker}"
        )
    }
}

/// Fails where an episode whose agents use up their budgets could not be held by the whole cache.
///
/// An organizer may decode longer, as every Join begins its budget anew; an episode that outgrows the cache fails when it
/// does.
pub(crate) fn check_holds_one_episode(
    engine: &BatchedEngine,
    budget: Option<u64>,
    settings: &RolloutSettings,
    queries: &[Query],
) -> Result<()> {
    let prompts = queries.iter().map(|query| query.prompt.ids.len());
    let episode = EpisodeTokens::new(
        settings,
        prompts.max().unwrap_or(0),
        engine.max_sequence_tokens(),
    );
    let needed_blocks = episode.num_blocks(engine.block_size());
    if needed_blocks <= engine.num_blocks() {
        return Ok(());
    }
    let (num_blocks, block_bytes) = (engine.num_blocks(), engine.block_bytes());
    Err(Error::EpisodeCache {
        organizer_tokens: episode.organizer,
        num_workers: episode.num_workers,
        worker_tokens: episode.worker,
        needed_blocks,
        block_size: engine.block_size(),
        num_blocks,
        block_bytes,
        budget_bytes: budget.unwrap_or(block_bytes * num_blocks as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_bytes_or_shares_of_what_is_free() {
        let auto = cache_budget(None, Device::Cpu).unwrap().unwrap();
        let free = free_bytes(Device::Cpu).unwrap();
        assert!(auto > free / 4 && auto < free, "{auto} of {free}");
        let bytes = cache_budget(Some(MemoryBudget::Bytes(77)), Device::Cpu);
        assert_eq!(bytes, Ok(Some(77)));
        assert_eq!(automatic_cache_bytes(100 << 30, Device::Cpu), 50 << 30);
        assert_eq!(automatic_cache_bytes(100 << 30, Device::Cuda(0)), 89 << 30);
        assert_eq!(automatic_cache_bytes(1 << 30, Device::Cuda(0)), 0);
    }
}
