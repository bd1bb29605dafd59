//! The prediction against arithmetic by hand, and what is made of it.

use asyncthink_model::{ModelConfig, ModelSizes};
use asyncthink_recipe::{MemoryBudget, OrAuto, Shard};
use tch::Device;

use super::*;

const GB: u64 = 1_000_000_000;

/// `[vocab, hidden, intermediate, layers, heads, kv_heads, head_dim]`.
fn config(sizes: [i64; 7], tie_word_embeddings: bool) -> ModelConfig {
    let [
        vocab_size,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
    ] = sizes;
    ModelConfig::new(&ModelSizes {
        vocab_size,
        hidden_size,
        intermediate_size,
        num_layers: usize::try_from(num_layers).unwrap(),
        num_heads,
        num_kv_heads,
        head_dim,
        rope_theta: 1e6,
        max_position_embeddings: 40_960,
        tie_word_embeddings,
        eos_token_id: 0,
    })
    .unwrap()
}

fn qwen3_4b() -> ModelConfig {
    config([151_936, 2560, 9728, 36, 32, 8, 128], true)
}

fn qwen3_32b() -> ModelConfig {
    config([151_936, 5120, 25_600, 64, 64, 8, 128], false)
}

/// Full fine-tuning in bf16 on one GPU, with episodes of some 10,000 tokens.
fn on_a_gpu() -> MemorySettings {
    MemorySettings {
        is_cpu: false,
        element_bytes: 2,
        trained: Trained::All,
        offloads_optimizer: false,
        shard: Shard::Optimizer,
        world_size: 1,
        micro_batches_per_gather: 1,
        micro_batch_tokens: 16_384,
        rank_tokens: 10_000_000,
        longest_row: 10_000,
        activation_checkpointing: false,
        num_workers: 1,
        has_reference: false,
        sampling: Some(SamplingMemory {
            element_bytes: 2,
            cache_bytes: 1000 * GB,
            batch_tokens: 8192,
        }),
    }
}

fn gpu_of(gb: u64) -> Machine {
    Machine {
        device: Device::Cuda(0),
        num_threads: 16,
        world_size: 1,
        free_bytes: Some(gb * GB),
        free_host_bytes: None,
    }
}

fn settled(config: &ModelConfig, settings: &MemorySettings, gb: u64) -> SettledMemory {
    SettledMemory::new(config, settings, &gpu_of(gb), None, None, None)
}

#[test]
fn parts_of_weights_are_counts_times_bytes() {
    let config = qwen3_4b();
    let parameters = u64::try_from(config.num_parameters()).unwrap();
    let in_bf16 = predict(&config, &on_a_gpu());
    assert_eq!(in_bf16.of("weights"), 2 * parameters);
    assert_eq!(in_bf16.of("master weights"), 4 * parameters);
    assert_eq!(in_bf16.of("gradients"), 4 * parameters);
    assert_eq!(in_bf16.of("moments"), 8 * parameters);
    // Sampling reads the weights of training.
    assert_eq!(in_bf16.of("weights for sampling"), 0);
    let in_f32 = MemorySettings {
        element_bytes: 4,
        has_reference: true,
        ..on_a_gpu()
    };
    let in_f32 = predict(&config, &in_f32);
    assert_eq!(in_f32.of("weights"), 4 * parameters);
    assert_eq!(in_f32.of("master weights"), 0);
    assert_eq!(in_f32.of("reference model"), 4 * parameters);
    assert_eq!(in_f32.of("weights for sampling"), 2 * parameters);
    let shared_out = MemorySettings {
        world_size: 4,
        shard: Shard::Full,
        ..on_a_gpu()
    };
    let shared_out = predict(&config, &shared_out);
    assert_eq!(shared_out.of("weights"), 2 * parameters.div_ceil(4));
    assert_eq!(shared_out.of("moments"), 8 * parameters.div_ceil(4));
    let offloaded = MemorySettings {
        offloads_optimizer: true,
        ..on_a_gpu()
    };
    let offloaded = predict(&config, &offloaded);
    assert_eq!(offloaded.of("moments") + offloaded.of("master weights"), 0);
    assert!(offloaded.host_bytes() >= 12 * parameters);
}

#[test]
fn the_large_recipes_fit_the_gpus_that_they_are_for() {
    let offloaded = MemorySettings {
        offloads_optimizer: true,
        ..on_a_gpu()
    };
    let adapters = MemorySettings {
        trained: Trained::Adapters(270_000_000),
        longest_row: 4096,
        ..on_a_gpu()
    };
    for (config, settings, gb) in [
        (qwen3_4b(), &offloaded, 80),
        (qwen3_4b(), &on_a_gpu(), 141),
        (qwen3_32b(), &adapters, 80),
    ] {
        let settled = settled(&config, settings, gb);
        assert!(settled.refusal(&config, "grpo").is_none(), "{settled:?}");
        assert!(settled.chosen.micro_batch_tokens >= 2048, "{settled:?}");
        // The cache gets what is left, which holds whole episodes.
        assert!(settled.cache_bytes.unwrap() > 3 * GB, "{settled:?}");
    }
    // What the first recipes did: f32, nothing offloaded.
    let in_f32 = MemorySettings {
        element_bytes: 4,
        ..on_a_gpu()
    };
    let error = settled(&qwen3_4b(), &in_f32, 80).refusal(&qwen3_4b(), "grpo");
    let error = error.unwrap();
    assert!(error.is_input());
    let (text, hint) = (error.to_string(), error.hint().unwrap());
    assert!(text.contains("moments 30.0 GiB"), "{text}");
    for change in [
        "precision.compute",
        "memory.offload",
        "[model.lora]",
        "memory.budget",
    ] {
        assert!(hint.contains(change), "{hint}");
    }
}

#[test]
fn less_work_at_a_time_takes_less_memory() {
    let config = qwen3_4b();
    let of = |micro_batch_tokens, activation_checkpointing| {
        let settings = MemorySettings {
            micro_batch_tokens,
            activation_checkpointing,
            longest_row: 100,
            sampling: None,
            ..on_a_gpu()
        };
        predict(&config, &settings).device_bytes()
    };
    for pair in CANDIDATE_TOKENS.windows(2) {
        for checkpointing in [false, true] {
            assert!(of(pair[1], checkpointing) < of(pair[0], checkpointing));
        }
        assert!(of(pair[0], true) < of(pair[0], false));
    }
}

#[test]
fn choices_fit_and_leave_alone_what_is_given() {
    let config = qwen3_4b();
    let settings = MemorySettings {
        longest_row: 400,
        sampling: None,
        ..on_a_gpu()
    };
    let choose = |tokens, checkpointing, budget: Option<u64>| {
        let budgets: Vec<u64> = budget.into_iter().collect();
        super::choose(&config, &settings, tokens, checkpointing, &budgets)
    };
    let chosen = |micro_batch_tokens, activation_checkpointing| Chosen {
        micro_batch_tokens,
        activation_checkpointing,
    };
    assert_eq!(choose(None, None, None), chosen(16_384, false));
    assert_eq!(choose(None, None, Some(1000 * GB)), chosen(16_384, false));
    // 4096 tokens and more without checkpointing come before more tokens with it.
    let plain = predict(&config, &chosen(4096, false).applied_to(&settings)).device_bytes();
    assert_eq!(choose(None, None, Some(plain)), chosen(4096, false));
    assert_eq!(choose(None, None, Some(plain - 1)), chosen(16_384, true));
    assert_eq!(choose(Some(700), None, Some(1000 * GB)), chosen(700, false));
    assert_eq!(
        choose(None, Some(true), Some(1000 * GB)),
        chosen(16_384, true)
    );
    // Where nothing fits, what takes least.
    assert_eq!(choose(None, None, Some(1)), chosen(512, true));
    // Where nothing fits nine tenths, the whole will do.
    let tight = predict(&config, &chosen(2048, true).applied_to(&settings)).device_bytes();
    let within = super::choose(&config, &settings, None, None, &[1, tight]);
    assert_eq!(within, chosen(2048, true));
    let given = Chosen::given(OrAuto::Given(33), OrAuto::Given(true));
    assert_eq!(given, chosen(33, true));
}

#[test]
fn a_budget_of_the_recipe_counts_in_place_of_what_is_free() {
    let machine = gpu_of(100);
    assert_eq!(machine.target_bytes(None), Some(90 * GB));
    assert_eq!(machine.limit_bytes(None), Some(100 * GB));
    let budget = Some(MemoryBudget::Bytes(7));
    assert_eq!(machine.target_bytes(budget), Some(7));
    assert_eq!(machine.limit_bytes(budget), Some(7));
    assert_eq!(
        machine.limit_bytes(Some(MemoryBudget::Share(0.5))),
        Some(50 * GB)
    );
    let unknown = Machine {
        free_bytes: None,
        ..machine
    };
    assert_eq!(unknown.limit_bytes(None), None);
    let settled = SettledMemory::new(&qwen3_4b(), &on_a_gpu(), &unknown, None, None, None);
    assert!(settled.refusal(&qwen3_4b(), "grpo").is_none());
}
