//! The fused decoder, with its kernels emulated, against [`Decoder::step`] and the reference sampler.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a panic is a failed test, and the numbers are small"
)]

use asyncthink_model::{Decoder, FusedDecoder, KvCache, ModelConfig, ModelSizes, StepBatch};
use asyncthink_torch::{Kernels, ReferenceSampler, SampledRow, SamplingBatch, SamplingRow};
use tch::{Device, Kind};

const VOCAB: i64 = 91;
const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 24;

fn decoder(head_dim: i64, num_heads: i64, kind: Kind) -> Decoder {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: VOCAB,
        hidden_size: 64,
        intermediate_size: 96,
        num_layers: 2,
        num_heads,
        num_kv_heads: 2,
        head_dim,
        rope_theta: 10_000.0,
        max_position_embeddings: 512,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap();
    let decoder = Decoder::init(&config, Device::Cpu, 3).unwrap();
    let parameters = decoder.named_parameters().iter().map(|(name, tensor)| {
        // Freshly drawn weights give nearly uniform logits, which would hide mistakes.
        let factor = if name.ends_with("norm.weight") {
            1.0
        } else {
            6.0
        };
        (name.clone(), (tensor.detach() * factor).to_kind(kind))
    });
    Decoder::from_parameters(&config, parameters.collect()).unwrap()
}

/// Both decoders on the same steps.
struct Pair {
    decoder: Decoder,
    fused: FusedDecoder,
    cache: KvCache,
    bound: f32,
    position: u64,
}

impl Pair {
    fn new(head_dim: i64, num_heads: i64, kind: Kind, bound: f32) -> Self {
        let decoder = decoder(head_dim, num_heads, kind);
        let config = decoder.config();
        let kernels = Kernels::emulated().unwrap();
        let mut fused = FusedDecoder::new(kernels, config, kind, BLOCK_SIZE).unwrap();
        fused.allocate(NUM_BLOCKS).unwrap();
        Self {
            cache: KvCache::new(config, NUM_BLOCKS, BLOCK_SIZE, kind, Device::Cpu).unwrap(),
            decoder,
            fused,
            bound,
            position: 0,
        }
    }

    /// Runs a step on both. In f32 the same tokens must come; in bf16, tokens of nearly the same log-prob.
    fn step(&mut self, batch: &StepBatch) {
        let mut sampling = SamplingBatch::default();
        sampling.clear();
        for index in 0..batch.sample_rows.len() {
            self.position += 1;
            let row = SamplingRow {
                temperature: [1.0, 0.0, 0.7][index % 3],
                top_k: [0, 0, 20][index % 3],
                top_p: 1.0,
                min_p: 0.0,
                seed: 77,
                position: self.position,
            };
            sampling.push(row, (0..index as i64).map(|id| id * 7));
        }
        let got = self.fused.step(&self.decoder, batch, &sampling).unwrap();
        assert_eq!(got.len(), batch.sample_rows.len());
        if got.is_empty() {
            let _ = self.decoder.step(batch, &self.cache).unwrap();
            return;
        }
        let logits = self.decoder.step(batch, &self.cache).unwrap();
        let raw = logits.log_softmax(-1, Kind::Float);
        let logits = Vec::<Vec<f32>>::try_from(logits.to_kind(Kind::Float)).unwrap();
        let mut sampler = ReferenceSampler::default();
        for (index, (row, banned)) in sampling.iter().enumerate() {
            let got: &SampledRow = &got[index];
            let raw = raw.double_value(&[index as i64, got.token]) as f32;
            assert!((got.raw_logprob - raw).abs() < self.bound, "{got:?} {raw}");
            assert!(!banned.contains(&got.token));
            if self.bound < 1e-3 {
                let expected = sampler.sample(&logits[index], row, banned);
                assert_eq!(got.token, expected.token);
                assert!(
                    (got.logprob - expected.logprob).abs() < self.bound,
                    "{got:?} {expected:?}"
                );
            }
        }
    }
}

fn ids(from: i64, count: i64) -> impl Iterator<Item = i64> {
    (from..from + count).map(|id| id * 17 % VOCAB)
}

fn batch(sequences: &[(i64, usize, &[i32])], sample_rows: &[i32]) -> StepBatch {
    let mut batch = StepBatch::default();
    batch.clear();
    for &(count, first, blocks) in sequences {
        batch.push_sequence(
            ids(first as i64 + 3 * count, count),
            first,
            blocks.iter().copied(),
        );
    }
    batch.sample_rows.extend(sample_rows);
    batch
}

/// Prompts of all sizes, decoding in batches that do not fill their bucket, injected text, copies of blocks.
fn compare(mut pair: Pair) {
    let (a, b, c): (&[i32], &[i32], &[i32]) = (&[3, 9], &[0], &[5, 1, 2, 20, 23]);
    // A row may be sampled twice; a part of a prompt not at all.
    pair.step(&batch(&[(20, 0, a), (3, 0, b)], &[19, 22, 19]));
    pair.step(&batch(&[(67, 0, c)], &[]));
    pair.step(&batch(&[(1, 20, a), (1, 3, b), (3, 67, c)], &[0, 1, 4]));
    for step in 0..3 {
        let rows = [(1, 21 + step, a), (1, 4 + step, b), (1, 70 + step, c)];
        pair.step(&batch(&rows, &[0, 1, 2]));
    }
    pair.step(&batch(&[(1, 7, b)], &[0]));
    // Injected text that is shorter and longer than what shares out keys.
    pair.step(&batch(&[(7, 24, &[3, 9])], &[6]));
    // `d` goes on where `b` is, in a copy of its block.
    let mut copied = batch(&[(1, 8, b), (2, 8, &[14])], &[0, 2]);
    copied.block_copies.push([0, 14]);
    pair.step(&copied);
    pair.step(&batch(&[(1, 9, b), (1, 10, &[14])], &[0, 1]));
    // Sampled out of order, which no recorded step does.
    pair.step(&batch(&[(1, 10, b), (1, 11, &[14])], &[1, 0]));
    // New weights, in place.
    tch::no_grad(|| {
        for (_, tensor) in pair.decoder.named_parameters() {
            let _ = tensor.shallow_clone().g_mul_scalar_(0.9);
        }
    });
    pair.fused.weights_changed();
    pair.step(&batch(&[(1, 11, b), (1, 12, &[14])], &[0, 1]));
}

#[test]
fn fused_decoder_equals_the_plain_one_in_f32() {
    compare(Pair::new(16, 4, Kind::Float, 1e-4));
}

#[test]
fn fused_decoder_is_near_the_plain_one_in_bf16() {
    compare(Pair::new(64, 6, Kind::BFloat16, 0.15));
}

#[test]
fn contradicting_steps_are_refused() {
    let mut pair = Pair::new(16, 4, Kind::Float, 1e-4);
    let mut sampling = SamplingBatch::default();
    sampling.clear();
    let one = batch(&[(1, 0, &[0])], &[0]);
    let refused = |pair: &mut Pair, batch: &StepBatch, sampling: &SamplingBatch| {
        let result = pair.fused.step(&pair.decoder, batch, sampling);
        result.unwrap_err().to_string()
    };
    let message = refused(&mut pair, &one, &sampling);
    assert!(
        message.contains("1 rows are to be sampled with 0 settings"),
        "{message}"
    );
    let outside = batch(&[(1, 16, &[0])], &[]);
    let message = refused(&mut pair, &outside, &sampling);
    assert!(
        message.contains("17 tokens and 1 blocks of 16"),
        "{message}"
    );
}

#[test]
fn support_depends_on_the_model_and_the_blocks() {
    let config = decoder(16, 4, Kind::Float).config().clone();
    assert!(FusedDecoder::supports(&config, Kind::BFloat16, 32));
    assert!(!FusedDecoder::supports(&config, Kind::Half, 16));
    assert!(!FusedDecoder::supports(&config, Kind::Float, 24));
    let other = decoder(8, 4, Kind::Float).config().clone();
    assert!(!FusedDecoder::supports(&other, Kind::Float, 16));
}
