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
        MemoryBudget::Auto => Ok(free.map(|free| automatic(free, device))),
        budget => budget.limit_bytes(free),
    }
}

fn automatic(free: u64, device: Device) -> u64 {
    if device == Device::Cpu {
        free / 2
    } else {
        (free - free / 10).saturating_sub(GPU_RESERVE_BYTES)
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
    let context = engine.max_sequence_tokens();
    let prompts = queries.iter().map(|query| query.prompt.ids.len());
    let prompt_tokens = prompts.max().unwrap_or(0);
    let organizer_budget = settings
        .organizer_total_tokens
        .unwrap_or(settings.organizer_max_tokens);
    let organizer_tokens = (prompt_tokens + organizer_budget).min(context);
    let worker_tokens = settings.worker_max_tokens.min(context);
    let num_workers = settings.protocol.capacity.max_workers() as usize;
    let blocks = |tokens: usize| tokens.div_ceil(engine.block_size());
    let needed_blocks = blocks(organizer_tokens) + num_workers * blocks(worker_tokens);
    if needed_blocks <= engine.num_blocks() {
        return Ok(());
    }
    let (num_blocks, block_bytes) = (engine.num_blocks(), engine.block_bytes());
    Err(Error::EpisodeCache {
        organizer_tokens,
        num_workers,
        worker_tokens,
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
        assert_eq!(automatic(100 << 30, Device::Cpu), 50 << 30);
        assert_eq!(automatic(100 << 30, Device::Cuda(0)), 89 << 30);
        assert_eq!(automatic(1 << 30, Device::Cuda(0)), 0);
    }
}
