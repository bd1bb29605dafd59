//! Memory of a stage, settled: what is chosen, what the cache may take, and whether it fits.

use asyncthink_model::ModelConfig;
use asyncthink_recipe::{MemoryBudget, Shard};
use tch::Device;

use super::choose::{Chosen, choose};
use super::of_stage::Machine;
use super::prediction::{MemoryPrediction, When, predict};
use super::settings::{MemorySettings, SamplingMemory};
use crate::error::Error;

/// Memory of a stage on a machine.
#[derive(Clone, Debug)]
pub struct SettledMemory {
    /// Values that are given or chosen.
    pub chosen: Chosen,
    /// Most bytes for the KV cache where it takes what is left; `None` where that is not known.
    pub cache_bytes: Option<u64>,
    /// Whether cache and activations do not fit side by side, so that the cache is given back before an update.
    pub cache_takes_turns: bool,
    /// Memory, part by part.
    pub prediction: MemoryPrediction,
    /// Bytes of the device that the run may take; `None` where that is not known.
    pub limit_bytes: Option<u64>,
    settings: MemorySettings,
    free_host_bytes: Option<u64>,
    is_budget_given: bool,
}

impl SettledMemory {
    /// Chooses what is not given, for a recipe's `memory.budget`.
    pub fn new(
        config: &ModelConfig,
        settings: &MemorySettings,
        machine: &Machine,
        budget: Option<MemoryBudget>,
        micro_batch_tokens: Option<u64>,
        activation_checkpointing: Option<bool>,
    ) -> Self {
        let target = machine.target_bytes(budget);
        // The cache takes what the rest leaves.
        let beside_cache = without_cache(settings);
        let chosen = choose(
            config,
            &beside_cache,
            micro_batch_tokens,
            activation_checkpointing,
            &[target, machine.limit_bytes(budget)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>(),
        );
        let beside_cache = chosen.applied_to(&beside_cache);
        let cache_bytes = cache_limit(
            config,
            &beside_cache,
            machine,
            target,
            machine.limit_bytes(budget),
        );
        let mut settings = chosen.applied_to(settings);
        if let (Some(sampling), Some(limit)) = (&mut settings.sampling, cache_bytes) {
            sampling.cache_bytes = sampling.cache_bytes.min(limit);
        }
        let training = predict(config, &beside_cache).during_bytes(When::Training);
        let cache = settings.sampling.map_or(0, |sampling| sampling.cache_bytes);
        Self {
            chosen,
            cache_bytes,
            // The engine would also keep the weights that were gathered for it.
            cache_takes_turns: machine.device != Device::Cpu
                && settings.sampling.is_some()
                && (settings.shard == Shard::Full
                    || target.is_some_and(|target| training + cache > target)),
            prediction: predict(config, &settings),
            limit_bytes: machine.limit_bytes(budget),
            free_host_bytes: machine.free_host_bytes,
            settings,
            is_budget_given: !matches!(budget, None | Some(MemoryBudget::Auto)),
        }
    }

    /// Why the run cannot be: it needs more memory than there is.
    pub fn refusal(&self, config: &ModelConfig, stage: &str) -> Option<Error> {
        let limit_bytes = self.limit_bytes?;
        let needed_bytes = self.prediction.device_bytes();
        if needed_bytes > limit_bytes {
            return Some(Error::Memory {
                place: if self.settings.is_cpu {
                    "memory"
                } else {
                    "memory of the GPU"
                },
                needed_bytes,
                limit_bytes,
                table: self.prediction.summary(),
                remedies: MemoryPrediction::remedies(config, &self.settings, stage),
            });
        }
        // Copies for a checkpoint come and go, and were never counted.
        let on_host = self.prediction.resident_host_bytes();
        let free = self.free_host_bytes?;
        (on_host > free).then(|| Error::Memory {
            place: "memory of the host",
            needed_bytes: on_host,
            limit_bytes: free,
            table: self.prediction.summary(),
            remedies: Vec::new(),
        })
    }

    /// Whether a micro-batch is bounded by the tokens of episodes, whose length is a guess, and by nothing in the recipe: what
    /// does not fit is then said, not refused.
    pub fn is_guess(&self) -> bool {
        !self.is_budget_given
            && self.settings.sampling.is_some()
            && self.settings.micro_batch_tokens > self.settings.rank_tokens
    }
}

fn without_cache(settings: &MemorySettings) -> MemorySettings {
    MemorySettings {
        sampling: settings.sampling.map(|sampling| SamplingMemory {
            cache_bytes: 0,
            ..sampling
        }),
        ..settings.clone()
    }
}

/// Bytes that everything else leaves for the cache.
fn cache_limit(
    config: &ModelConfig,
    beside_cache: &MemorySettings,
    machine: &Machine,
    target: Option<u64>,
    limit: Option<u64>,
) -> Option<u64> {
    beside_cache.sampling?;
    let prediction = predict(config, beside_cache);
    if machine.device == Device::Cpu {
        // It stays while weights are updated, and other programs run beside it.
        let left = target?.saturating_sub(prediction.device_bytes());
        return Some(left.min(machine.free_bytes? / 2));
    }
    // Of sampling nothing is uncertain but what the allocator loses.
    let all = limit.map(|limit| limit - limit / 32)?;
    Some(all.saturating_sub(prediction.during_bytes(When::Sampling)))
}
