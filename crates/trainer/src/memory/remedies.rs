//! What to change where a run would not fit.

use asyncthink_model::ModelConfig;
use asyncthink_recipe::Shard;

use super::prediction::{MemoryPrediction, predict};
use super::settings::{MemorySettings, Trained};

/// A change of the recipe that saves memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// Keys and values to set.
    pub change: String,
    /// Bytes of the device that it saves.
    pub saved_bytes: u64,
}

impl MemoryPrediction {
    /// Changes of the recipe that would save memory of the device, those that save most first.
    pub fn remedies(config: &ModelConfig, settings: &MemorySettings, stage: &str) -> Vec<Remedy> {
        let now = predict(config, settings).device_bytes();
        let mut remedies = Vec::new();
        let mut offer = |change: String, changed: MemorySettings| {
            let then = predict(config, &changed).device_bytes();
            if then < now {
                remedies.push(Remedy {
                    change,
                    saved_bytes: now - then,
                });
            }
        };
        if settings.element_bytes != 2 {
            offer(
                "precision.compute = \"bf16\"".to_owned(),
                MemorySettings {
                    element_bytes: 2,
                    sampling: settings.sampling.map(|sampling| super::SamplingMemory {
                        element_bytes: 2,
                        cache_bytes: sampling.cache_bytes * 2 / sampling.element_bytes.max(2),
                        ..sampling
                    }),
                    ..settings.clone()
                },
            );
        }
        if !settings.is_cpu && !settings.offloads_optimizer {
            offer(
                "memory.offload = \"optimizer\"".to_owned(),
                MemorySettings {
                    offloads_optimizer: true,
                    ..settings.clone()
                },
            );
        }
        if !settings.recomputes() {
            offer(
                format!("{stage}.activation_checkpointing = true"),
                MemorySettings {
                    activation_checkpointing: true,
                    ..settings.clone()
                },
            );
        }
        let fewer = (settings.tokens_of_micro_batch() / 4).max(512);
        offer(
            format!("{stage}.micro_batch_tokens = {fewer}"),
            MemorySettings {
                micro_batch_tokens: fewer,
                ..settings.clone()
            },
        );
        if settings.world_size > 1 && settings.shard == Shard::Optimizer {
            offer(
                "distributed.shard = \"full\"".to_owned(),
                MemorySettings {
                    shard: Shard::Full,
                    num_workers: 1,
                    ..settings.clone()
                },
            );
        }
        if let Trained::All = settings.trained {
            let hundredth = u64::try_from(config.num_parameters()).unwrap_or(0) / 100;
            offer(
                "[model.lora]".to_owned(),
                MemorySettings {
                    trained: Trained::Adapters(hundredth),
                    ..settings.clone()
                },
            );
        }
        remedies.sort_by_key(|remedy| std::cmp::Reverse(remedy.saved_bytes));
        remedies
    }
}
