//! Gradients of a model that computes in bf16: within a bound of those in f32, and summed in f32 however a batch is cut.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::rc::Rc;
use std::sync::Arc;

use asyncthink_algorithms::{Aggregation, CrossEntropy};
use asyncthink_data::{TokenId, TrainingRow};
use asyncthink_distributed::{AdamW, AdamWSettings, Ranks, ShardedDecoder, Sharding, StateOptions};
use asyncthink_gradient::{BatchSettings, Weights, accumulate_gradient};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Parallelism, draw_parameters};
use asyncthink_recipe::OldPolicy;
use tch::{Device, Kind, Tensor};

const SEED: u64 = 7;

const SETTINGS: AdamWSettings = AdamWSettings {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
};

/// Largest share by which the gradient in bf16 differs from that in f32, as norms of all parameters. A product in bf16 has a
/// relative error of 2^-9; a gradient goes through some twenty of them.
const BOUND: f64 = 0.02;

fn config(tie_word_embeddings: bool) -> ModelConfig {
    ModelConfig::new(&ModelSizes {
        vocab_size: 60,
        hidden_size: 64,
        intermediate_size: 96,
        num_layers: 3,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        rope_theta: 10_000.0,
        max_position_embeddings: 128,
        tie_word_embeddings,
        eos_token_id: 0,
    })
    .unwrap()
}

/// Rows in which one token comes again and again: its embedding's gradient is a sum over many.
fn rows() -> Vec<TrainingRow> {
    (0..12_u32)
        .map(|row| {
            let token = |position: u32| match position % 3 {
                0 => TokenId(1),
                _ => TokenId((row * 17 + position * 5) % 60),
            };
            let ids: Vec<TokenId> = (0..20 + 3 * row).map(token).collect();
            TrainingRow::sft(&ids[..4], &ids[4..]).unwrap()
        })
        .collect()
}

fn settings(micro_batch_tokens: usize, activation_checkpointing: bool) -> BatchSettings {
    BatchSettings {
        loss: Arc::new(CrossEntropy),
        aggregation: Aggregation::TokenMean,
        old_policy: OldPolicy::Sampler,
        measures_policy: false,
        temperature: 1.0,
        micro_batch_tokens,
        activation_checkpointing,
        share_prefixes: true,
        redistribute_rows: false,
        parallelism: Parallelism::SINGLE,
    }
}

/// Loss and gradient, after `updates` updates.
fn gradient(
    kind: Kind,
    tied: bool,
    batch: &BatchSettings,
    is_sharded: bool,
    updates: usize,
) -> (f64, Tensor) {
    let config = config(tied);
    let mut read =
        |visit: asyncthink_model::VisitParameter<'_>| draw_parameters(&config, SEED, visit);
    let mut state = StateOptions::default();
    if kind != Kind::Float {
        state.read = Some(&mut read);
    }
    let ranks: Arc<Ranks> = Arc::default();
    let (weights, mut optimizer) = if is_sharded {
        let sharding = Sharding {
            ranks: Arc::clone(&ranks),
            device: Device::Cpu,
            micro_batches_per_gather: 1,
            kind,
        };
        let decoder = Rc::new(ShardedDecoder::init(&config, SEED, sharding).unwrap());
        let optimizer = AdamW::of_sharded(&decoder, SETTINGS, ranks, state).unwrap();
        (Weights::Sharded(decoder), optimizer)
    } else {
        let mut decoder = Decoder::init_in(&config, Device::Cpu, kind, SEED).unwrap();
        decoder.set_requires_grad(true);
        let parameters = decoder.trained_parameters();
        let optimizer = AdamW::with_state(parameters, SETTINGS, ranks, 1 << 20, state).unwrap();
        (Weights::Whole(Box::new(decoder)), optimizer)
    };
    let compute = |optimizer: &AdamW| {
        accumulate_gradient(&weights, None, &rows(), batch, optimizer, &mut |_, _| true)
            .unwrap()
            .unwrap()
    };
    optimizer.zero_grad();
    let mut metrics = compute(&optimizer);
    for _ in 0..updates {
        optimizer.step(1e-3).unwrap();
        optimizer.zero_grad();
        metrics = compute(&optimizer);
    }
    (metrics.loss, optimizer.gradients().copy())
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).norm().double_value(&[]) / b.norm().double_value(&[])
}

#[test]
fn the_gradient_is_within_a_bound_of_that_in_f32() {
    for tied in [true, false] {
        for updates in [0, 2] {
            let batch = settings(1_000_000, false);
            let (exact_loss, exact) = gradient(Kind::Float, tied, &batch, false, updates);
            let (loss, rounded) = gradient(Kind::BFloat16, tied, &batch, false, updates);
            assert_eq!(rounded.kind(), Kind::Float);
            let difference = relative(&rounded, &exact);
            assert!(difference < BOUND, "{difference}");
            // Computed in bf16 at all.
            assert!(difference > 1e-5, "{difference}");
            assert!(
                (loss - exact_loss).abs() < 5e-3 * exact_loss,
                "{loss} {exact_loss}"
            );
        }
    }
}

#[test]
fn cutting_threads_and_sharding_change_no_more_than_a_layers_rounding() {
    let whole = gradient(Kind::BFloat16, true, &settings(1_000_000, false), false, 0).1;
    let again = gradient(Kind::BFloat16, true, &settings(1_000_000, true), false, 0).1;
    assert_eq!(
        again, whole,
        "layers that are computed again give the same bits"
    );
    let sharded = gradient(Kind::BFloat16, true, &settings(1_000_000, true), true, 0).1;
    // Where parameters lie differs by padding alone.
    let difference = relative(
        &sharded.narrow(0, 0, whole.size()[0].min(sharded.size()[0])),
        &whole,
    );
    assert!(difference < 1e-6, "{difference}");
    let exact = gradient(Kind::Float, true, &settings(1_000_000, false), false, 0).1;
    for micro_batch_tokens in [1, 100] {
        for parallelism in [Parallelism::SINGLE, Parallelism::across_batch(2)] {
            let batch = BatchSettings {
                parallelism,
                ..settings(micro_batch_tokens, false)
            };
            let cut = gradient(Kind::BFloat16, true, &batch, false, 0).1;
            let difference = relative(&cut, &exact);
            assert!(difference < BOUND, "{difference}");
        }
    }
}
