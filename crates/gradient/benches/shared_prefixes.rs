//! The gradient of groups of rows with one prompt each, with and without shared prefixes, as JSON.
//!
//! `cargo bench -p asyncthink-gradient --bench shared_prefixes -- [PROMPT_TOKENS NEW_TOKENS [ROUNDS]]`: 8 groups of 8 rows, by default
//! of 512 and 128 tokens, in the shape of `recipes/bench/nano.toml`, on all cores. Both ways take turns.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark has no one to report errors to"
)]

use std::sync::Arc;
use std::time::Instant;

use asyncthink_algorithms::{Aggregation, Clip, ClippedPolicyLoss};
use asyncthink_data::{EpisodeIndex, TokenId, TrainingRow};
use asyncthink_distributed::{AdamW, AdamWSettings};
use asyncthink_gradient::{BatchSettings, Weights, accumulate_gradient};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Parallelism};
use asyncthink_recipe::OldPolicy;
use tch::Device;

const NUM_GROUPS: usize = 8;
const GROUP_SIZE: usize = 8;

fn main() {
    let numbers: Vec<usize> = std::env::args()
        .filter_map(|word| word.parse().ok())
        .collect();
    let of = |index: usize, default: usize| numbers.get(index).copied().unwrap_or(default);
    let (prompt_tokens, new_tokens, num_rounds) = (of(0, 512), of(1, 128), of(2, 5));
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: 512,
        hidden_size: 192,
        intermediate_size: 512,
        num_layers: 4,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 32,
        rope_theta: 10_000.0,
        max_position_embeddings: 1024,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap();
    let mut decoder = Decoder::init(&config, Device::Cpu, 1).unwrap();
    decoder.set_requires_grad(true);
    let parallelism = Parallelism::for_decoder(&decoder);
    parallelism.apply();
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let parameters = decoder.trained_parameters();
    let mut optimizer = AdamW::new(parameters, settings, Arc::default(), 1 << 20).unwrap();
    let weights = Weights::Whole(Box::new(decoder));
    let rows = rows(prompt_tokens, new_tokens);
    let mut gradient = |share_prefixes| {
        let settings = BatchSettings {
            loss: Arc::new(ClippedPolicyLoss {
                clip: Clip {
                    low: 0.2,
                    high: 0.2,
                    dual: None,
                },
            }),
            aggregation: Aggregation::TokenMean,
            old_policy: OldPolicy::Sampler,
            measures_policy: true,
            temperature: 1.0,
            micro_batch_tokens: 16_384,
            activation_checkpointing: false,
            share_prefixes,
            redistribute_rows: false,
            parallelism,
        };
        optimizer.zero_grad();
        let started = Instant::now();
        let metrics =
            accumulate_gradient(&weights, None, &rows, &settings, &optimizer, &mut |_, _| {
                true
            });
        (started.elapsed().as_secs_f64(), metrics.unwrap().unwrap())
    };
    let _ = gradient(true);
    let mut seconds = [Vec::new(), Vec::new()];
    let mut tokens = [0, 0];
    for _ in 0..num_rounds {
        for (way, share_prefixes) in [false, true].into_iter().enumerate() {
            let (elapsed, metrics) = gradient(share_prefixes);
            seconds[way].push(elapsed);
            tokens[way] = metrics.num_computed_tokens;
        }
    }
    for (way, name) in ["apart", "shared"].into_iter().enumerate() {
        seconds[way].sort_by(f64::total_cmp);
        let median = seconds[way][num_rounds / 2];
        println!(
            "{{\"prefixes\": \"{name}\", \"computed_tokens\": {}, \"seconds\": {median:.3}, \"row_tokens_per_s\": {:.0}}}",
            tokens[way],
            tokens[0] as f64 / median
        );
    }
}

fn rows(prompt_tokens: usize, new_tokens: usize) -> Vec<TrainingRow> {
    let id = |seed: usize, place: usize| {
        let mixed = (seed * 7919 + place + 1) * 2_654_435_761 % 4_294_967_291 % 512;
        TokenId(u32::try_from(mixed).unwrap())
    };
    let row = |index: usize| {
        let group = index / GROUP_SIZE;
        let prompt = (0..prompt_tokens).map(|place| id(group, place));
        let ids = prompt.chain((0..new_tokens).map(|place| id(100 + index, place)));
        let mask: Vec<bool> = (0..prompt_tokens + new_tokens)
            .map(|place| place >= prompt_tokens)
            .collect();
        let logprobs = mask.iter().map(|&trained| if trained { -6.2 } else { 0.0 });
        let logprobs = logprobs.collect();
        let advantage = if index % 2 == 0 { 0.5 } else { -0.5 };
        let episode = EpisodeIndex(u32::try_from(index).unwrap());
        TrainingRow::policy(ids.collect(), mask, logprobs, advantage, episode).unwrap()
    };
    (0..NUM_GROUPS * GROUP_SIZE).map(row).collect()
}
