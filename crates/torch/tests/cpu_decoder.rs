//! The fused decoder on the CPU against plain libtorch operations, with every set of kernels that this processor has.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::many_single_char_names,
    reason = "a panic is a failed test, and the numbers are small"
)]

use asyncthink_torch::{
    CpuDecoder, CpuDecoderConfig, CpuKernels, CpuKvCache, CpuParameter, CpuStep, ReferenceSampler,
    SampledRow, SamplingBatch, SamplingRow, manual_seed,
};
use tch::{Device, Kind, Tensor};

const LAYERS: i64 = 2;
const HIDDEN: i64 = 40;
const INNER: i64 = 56;
const HEADS: i64 = 6;
const KV_HEADS: i64 = 2;
const HEAD_DIM: i64 = 32;
const VOCAB: i64 = 77;
const MAX_TOKENS: i64 = 300;
const EPS: f64 = 1e-6;

/// Weights of one layer, in the order of a Hugging Face folder.
struct Layer {
    norms: [Tensor; 4],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    biases: [Tensor; 7],
}

struct Model {
    embedding: Tensor,
    head: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
    cos: Tensor,
    sin: Tensor,
}

impl Model {
    fn new() -> Self {
        manual_seed(4);
        let random =
            |shape: &[i64], scale: f64| Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale;
        let near_one = |size: i64| random(&[size], 0.1) + 1.0;
        let layers = (0..LAYERS).map(|_| Layer {
            norms: [HIDDEN, HIDDEN, HEAD_DIM, HEAD_DIM].map(near_one),
            query: random(&[HEADS * HEAD_DIM, HIDDEN], 0.2),
            key: random(&[KV_HEADS * HEAD_DIM, HIDDEN], 0.2),
            value: random(&[KV_HEADS * HEAD_DIM, HIDDEN], 0.2),
            output: random(&[HIDDEN, HEADS * HEAD_DIM], 0.1),
            gate: random(&[INNER, HIDDEN], 0.3),
            up: random(&[INNER, HIDDEN], 0.3),
            down: random(&[HIDDEN, INNER], 0.2),
            biases: [
                HEADS * HEAD_DIM,
                KV_HEADS * HEAD_DIM,
                KV_HEADS * HEAD_DIM,
                HIDDEN,
                INNER,
                INNER,
                HIDDEN,
            ]
            .map(|size| random(&[size], 0.1)),
        });
        let layers = layers.collect();
        let options = (Kind::Float, Device::Cpu);
        let exponents = Tensor::arange_start_step(0, HEAD_DIM, 2, options) / HEAD_DIM as f64;
        let frequencies = Tensor::from(10_000_f32).pow(&exponents).reciprocal();
        let angles = Tensor::arange(MAX_TOKENS, options).outer(&frequencies);
        Self {
            embedding: random(&[VOCAB, HIDDEN], 1.0),
            head: random(&[VOCAB, HIDDEN], 0.3),
            norm: near_one(HIDDEN),
            layers,
            cos: angles.cos(),
            sin: angles.sin(),
        }
    }

    fn packed(&self, is_bf16: bool, kernels: Option<CpuKernels>) -> CpuDecoder {
        let sizes = [LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB];
        let mut config = CpuDecoderConfig::new(sizes, EPS).in_bf16(is_bf16);
        if let Some(kernels) = kernels {
            config = config.with_kernels(kernels);
        }
        assert!(config.is_supported());
        let mut decoder = CpuDecoder::new(config).unwrap();
        let mut set = |parameter, layer, tensors: &[&Tensor]| {
            decoder.set(parameter, layer, tensors).unwrap();
        };
        set(CpuParameter::Embedding, 0, &[&self.embedding]);
        set(CpuParameter::Head, 0, &[&self.head]);
        set(CpuParameter::FinalNorm, 0, &[&self.norm]);
        for (index, layer) in self.layers.iter().enumerate() {
            let [input, post, query, key] = &layer.norms;
            set(CpuParameter::InputNorm, index, &[input]);
            set(CpuParameter::PostNorm, index, &[post]);
            set(CpuParameter::QueryNorm, index, &[query]);
            set(CpuParameter::KeyNorm, index, &[key]);
            let projections = [&layer.query, &layer.key, &layer.value];
            set(CpuParameter::Qkv, index, &projections);
            set(CpuParameter::Output, index, &[&layer.output]);
            set(CpuParameter::GateUp, index, &[&layer.gate, &layer.up]);
            set(CpuParameter::Down, index, &[&layer.down]);
            let [q, k, v, o, g, u, d] = &layer.biases;
            set(CpuParameter::QkvBias, index, &[q, k, v]);
            set(CpuParameter::OutputBias, index, &[o]);
            set(CpuParameter::GateUpBias, index, &[g, u]);
            set(CpuParameter::DownBias, index, &[d]);
        }
        decoder
    }

    /// Logits `[tokens, vocab]` of one sequence by plain operations.
    fn logits(&self, ids: &[i64]) -> Tensor {
        let tokens = ids.len() as i64;
        let norm = |x: &Tensor, weight: &Tensor| x.rms_norm(weight.size(), Some(weight), EPS);
        let rotate = |heads: Tensor| {
            let halves = heads.chunk(2, -1);
            let cos = self.cos.narrow(0, 0, tokens).unsqueeze(1);
            let sin = self.sin.narrow(0, 0, tokens).unsqueeze(1);
            Tensor::cat(
                &[
                    &halves[0] * &cos - &halves[1] * &sin,
                    &halves[1] * &cos + &halves[0] * &sin,
                ],
                -1,
            )
        };
        let mut hidden = self.embedding.index_select(0, &Tensor::from_slice(ids));
        for layer in &self.layers {
            let [input, post, query_norm, key_norm] = &layer.norms;
            let [q, k, v, o, g, u, d] = &layer.biases;
            let x = norm(&hidden, input);
            let heads = |weight, bias| x.linear(weight, Some(bias)).unflatten(1, [-1, HEAD_DIM]);
            let query = rotate(norm(&heads(&layer.query, q), query_norm));
            let key = rotate(norm(&heads(&layer.key, k), key_norm));
            let value = heads(&layer.value, v);
            let repeat = |x: Tensor| x.repeat_interleave_self_int(HEADS / KV_HEADS, 1, None);
            let scores = Tensor::einsum("qhd,khd->hqk", &[&query, &repeat(key)], None::<i64>)
                / (HEAD_DIM as f64).sqrt();
            let later = Tensor::ones([tokens, tokens], (Kind::Bool, Device::Cpu)).triu(1);
            let weights = scores
                .masked_fill(&later, f64::NEG_INFINITY)
                .softmax(-1, Kind::Float);
            let attended = Tensor::einsum("hqk,khd->qhd", &[&weights, &repeat(value)], None::<i64>);
            hidden += attended.flatten(1, 2).linear(&layer.output, Some(o));
            let x = norm(&hidden, post);
            let gated = x.linear(&layer.gate, Some(g)).silu() * x.linear(&layer.up, Some(u));
            hidden += gated.linear(&layer.down, Some(d));
        }
        norm(&hidden, &self.norm).linear::<&Tensor>(&self.head, None)
    }
}

/// Sequences that are fed in portions, with a block table each.
struct Run<'a> {
    decoder: CpuDecoder,
    cache: CpuKvCache,
    block_size: usize,
    model: &'a Model,
    num_threads: usize,
}

/// Tokens of one sequence in one step.
struct Portion<'a> {
    ids: &'a [i64],
    first: usize,
    blocks: &'a [i32],
}

impl<'a> Run<'a> {
    fn new(model: &'a Model, decoder: CpuDecoder, block_size: usize, num_threads: usize) -> Self {
        let cache = CpuKvCache::new(decoder.config(), 64, block_size).unwrap();
        Self {
            decoder,
            cache,
            block_size,
            model,
            num_threads,
        }
    }

    /// Logits `[vocab]` of the last row of every portion, and what was sampled.
    fn step(
        &mut self,
        portions: &[Portion<'_>],
        copies: &[[i32; 2]],
    ) -> (Vec<Vec<f32>>, Vec<SampledRow>) {
        let (mut ids, mut cu_rows, mut first, mut cu_blocks, mut blocks, mut rows) =
            (vec![], vec![0], vec![], vec![0], vec![], vec![]);
        let mut sampling = SamplingBatch::default();
        sampling.clear();
        for (index, portion) in portions.iter().enumerate() {
            ids.extend_from_slice(portion.ids);
            cu_rows.push(ids.len() as i32);
            first.push(portion.first as i32);
            let needed = (portion.first + portion.ids.len()).div_ceil(self.block_size);
            blocks.extend_from_slice(&portion.blocks[..needed]);
            cu_blocks.push(blocks.len() as i32);
            rows.push(ids.len() as i32 - 1);
            let row = SamplingRow {
                temperature: 0.8,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                seed: 3 + index as u64,
                position: (portion.first + portion.ids.len()) as u64,
            };
            sampling.push(row, []);
        }
        let (cos, sin) = (values(&self.model.cos), values(&self.model.sin));
        let step = CpuStep {
            ids: &ids,
            cu_rows: &cu_rows,
            first_positions: &first,
            cu_blocks: &cu_blocks,
            blocks: &blocks,
            block_copies: copies,
            sample_rows: &rows,
            sampling: &sampling,
            cos: &cos,
            sin: &sin,
        };
        let threads = self.num_threads;
        let (sampled, logits) = self
            .decoder
            .step_with_logits(&mut self.cache, &step, threads)
            .unwrap();
        let mut reference = ReferenceSampler::default();
        let logits: Vec<Vec<f32>> = logits.chunks(VOCAB as usize).map(<[f32]>::to_vec).collect();
        for ((sampled, logits), (row, banned)) in sampled.iter().zip(&logits).zip(sampling.iter()) {
            let expected = reference.sample(logits, row, banned);
            assert_eq!(sampled.token, expected.token);
            assert!((sampled.logprob - expected.logprob).abs() < 1e-5);
            assert!((sampled.raw_logprob - expected.raw_logprob).abs() < 1e-5);
        }
        (logits, sampled)
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn row(logits: &Tensor, index: usize) -> Vec<f32> {
    values(&logits.get(index as i64))
}

fn difference(one: &[f32], other: &[f32]) -> f32 {
    let pairs = one.iter().zip(other);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn ids(len: usize, seed: i64) -> Vec<i64> {
    (0..len as i64)
        .map(|i| (i * 31 + seed * 17 + i * i % 7) % VOCAB)
        .collect()
}

const ALL: [CpuKernels; 4] = [
    CpuKernels::Generic,
    CpuKernels::Avx2,
    CpuKernels::Avx512,
    CpuKernels::NativeBf16,
];

#[test]
fn logits_equal_those_of_plain_operations_with_every_set_of_kernels() {
    let model = Model::new();
    let (one, other) = (ids(210, 1), ids(37, 2));
    let expected = (model.logits(&one), model.logits(&other));
    for kernels in ALL {
        for block_size in [16, 64] {
            let decoder = model.packed(false, Some(kernels));
            let mut run = Run::new(&model, decoder, block_size, 2);
            let tables: [Vec<i32>; 2] = [(20..40).collect(), (0..10).rev().collect()];
            let mut fed = [0, 0];
            // Prompts in portions, then token by token, with more and with fewer rows than a tile has.
            for (lengths, num_checked) in [
                ([5, 30], 2),
                ([140, 3], 2),
                ([1, 1], 2),
                ([60, 1], 2),
                ([1, 1], 2),
                ([3, 1], 2),
            ] {
                let portions: Vec<Portion<'_>> = [&one, &other]
                    .into_iter()
                    .enumerate()
                    .map(|(index, all)| Portion {
                        ids: &all[fed[index]..fed[index] + lengths[index]],
                        first: fed[index],
                        blocks: &tables[index],
                    })
                    .collect();
                let (logits, _) = run.step(&portions, &[]);
                assert_eq!(logits.len(), num_checked);
                for (index, expected) in [&expected.0, &expected.1].into_iter().enumerate() {
                    fed[index] += lengths[index];
                    let worst = difference(&logits[index], &row(expected, fed[index] - 1));
                    assert!(worst < 1e-4, "{kernels:?} {block_size} {fed:?}: {worst}");
                }
            }
        }
    }
}

#[test]
fn in_f32_a_row_depends_on_its_own_tokens_alone_to_the_bit() {
    let model = Model::new();
    let sequences: Vec<Vec<i64>> = (0..9).map(|seed| ids(150 + seed as usize, seed)).collect();
    // Alone, one token at a time, in one thread.
    let alone: Vec<Vec<f32>> = sequences
        .iter()
        .map(|all| {
            let mut run = Run::new(&model, model.packed(false, None), 16, 1);
            let blocks: Vec<i32> = (0..20).collect();
            let mut last = Vec::new();
            for (first, id) in all.iter().enumerate() {
                let ids = std::slice::from_ref(id);
                let blocks = &blocks;
                (last, _) = {
                    let (logits, sampled) = run.step(&[Portion { ids, first, blocks }], &[]);
                    (logits[0].clone(), sampled)
                };
            }
            last
        })
        .collect();
    for (num_threads, block_size, portion) in [(1, 16, 150), (2, 32, 150), (3, 64, 7)] {
        let mut run = Run::new(&model, model.packed(false, None), block_size, num_threads);
        let per_sequence = 160_usize.div_ceil(block_size);
        let tables: Vec<Vec<i32>> = (0..3)
            .map(|index| {
                (0..per_sequence)
                    .map(|b| (index * per_sequence + b) as i32)
                    .collect()
            })
            .collect();
        for group in [0, 3, 6] {
            let mut last: Vec<Vec<f32>> = Vec::new();
            let mut fed = 0;
            let longest = sequences[group + 2].len();
            while fed < longest {
                let portions: Vec<(usize, Portion<'_>)> = (0..3)
                    .filter_map(|index| {
                        let all = &sequences[group + index];
                        let ids = all.get(fed..)?;
                        let ids = &ids[..portion.min(ids.len())];
                        let blocks = &tables[index];
                        (!ids.is_empty()).then_some((
                            index,
                            Portion {
                                ids,
                                first: fed,
                                blocks,
                            },
                        ))
                    })
                    .collect();
                let (indices, portions): (Vec<_>, Vec<_>) = portions.into_iter().unzip();
                let (logits, _) = run.step(&portions, &[]);
                last.resize(3, Vec::new());
                for (index, logits) in indices.into_iter().zip(logits) {
                    last[index] = logits;
                }
                fed += portion;
            }
            for (index, last) in last.iter().enumerate() {
                let expected = &alone[group + index];
                assert!(
                    last.iter()
                        .zip(expected)
                        .all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{num_threads} threads, blocks of {block_size}, portions of {portion}"
                );
            }
        }
    }
}

#[test]
fn sequences_that_share_blocks_attend_as_if_each_had_its_own() {
    let model = Model::new();
    let head = ids(140, 5);
    let mut run = Run::new(&model, model.packed(false, None), 16, 2);
    let first_table: Vec<i32> = (0..12).collect();
    let portion = Portion {
        ids: &head,
        first: 0,
        blocks: &first_table,
    };
    run.step(&[portion], &[]);
    // The ninth block holds 12 tokens: each follower gets a copy of it, and shares the eight before.
    let tables: Vec<Vec<i32>> = (0..20)
        .map(|index| (0..8).chain([20 + 2 * index, 21 + 2 * index]).collect())
        .collect();
    let copies: Vec<[i32; 2]> = tables.iter().map(|table| [8, table[8]]).collect();
    let tails: Vec<Vec<i64>> = (0..20)
        .map(|seed| ids(1 + seed as usize % 3, 40 + seed))
        .collect();
    let portions: Vec<Portion<'_>> = tails
        .iter()
        .zip(&tables)
        .map(|(ids, blocks)| Portion {
            ids,
            first: 140,
            blocks,
        })
        .collect();
    let (logits, _) = run.step(&portions, &copies);
    for (tail, logits) in tails.iter().zip(&logits) {
        let all = [head.as_slice(), tail].concat();
        let worst = difference(logits, &row(&model.logits(&all), all.len() - 1));
        assert!(worst < 1e-4, "{worst}");
    }
}

#[test]
fn bf16_is_near_f32_and_every_set_of_kernels_agrees() {
    let model = Model::new();
    let all = ids(100, 3);
    let exact = row(&model.logits(&all), 99);
    let blocks: Vec<i32> = (0..10).collect();
    let mut found: Vec<Vec<f32>> = Vec::new();
    for kernels in ALL.into_iter().chain([CpuKernels::TilesEmulated]) {
        // A part that tiles do not divide, a part in one row.
        let mut run = Run::new(&model, model.packed(true, Some(kernels)), 16, 2);
        for (from, to) in [(0, 45), (45, 99), (99, 100)] {
            let portion = Portion {
                ids: &all[from..to],
                first: from,
                blocks: &blocks,
            };
            let (logits, _) = run.step(&[portion], &[]);
            if to == 100 {
                found.push(logits[0].clone());
            }
        }
    }
    let scale = exact.iter().map(|one| one.abs()).fold(0.0, f32::max);
    for logits in &found {
        let off = difference(logits, &exact) / scale;
        assert!(off > 1e-5 && off < 0.05, "{off}");
        // Sums in another order can round an operand the other way.
        let apart = difference(logits, &found[0]) / scale;
        assert!(apart < 0.01, "{apart}");
    }
}

#[test]
fn steps_that_contradict_themselves_or_the_cache_are_errors() {
    let model = Model::new();
    let mut decoder = model.packed(false, None);
    let mut cache = CpuKvCache::new(decoder.config(), 4, 16).unwrap();
    let (cos, sin) = (values(&model.cos), values(&model.sin));
    let mut sampling = SamplingBatch::default();
    sampling.clear();
    let good = CpuStep {
        ids: &[1, 2],
        cu_rows: &[0, 2],
        first_positions: &[15],
        cu_blocks: &[0, 2],
        blocks: &[3, 1],
        block_copies: &[],
        sample_rows: &[],
        sampling: &sampling,
        cos: &cos,
        sin: &sin,
    };
    assert!(decoder.step(&mut cache, &good, 1).unwrap().is_empty());
    let half = HEAD_DIM as usize / 2;
    let bad = [
        CpuStep {
            ids: &[1, VOCAB],
            ..good
        },
        CpuStep {
            ids: &[1, -1],
            ..good
        },
        CpuStep {
            cu_rows: &[0, 3],
            ..good
        },
        CpuStep {
            cu_rows: &[2, 2],
            ..good
        },
        CpuStep {
            blocks: &[3, 4],
            ..good
        },
        CpuStep {
            blocks: &[-1, 1],
            ..good
        },
        CpuStep {
            cu_blocks: &[0, 1],
            blocks: &[3],
            ..good
        },
        CpuStep {
            first_positions: &[-1],
            ..good
        },
        CpuStep {
            first_positions: &[31],
            ..good
        },
        CpuStep {
            block_copies: &[[0, 4]],
            ..good
        },
        CpuStep {
            sample_rows: &[0],
            ..good
        },
        CpuStep {
            cos: &cos[..16 * half],
            ..good
        },
    ];
    for step in bad {
        assert!(decoder.step(&mut cache, &step, 1).is_err(), "{step:?}");
    }
    assert!(CpuKvCache::new(decoder.config(), 4, 8).is_err());
    let other = *model.packed(true, None).config();
    let mut other = CpuKvCache::new(&other, 4, 16).unwrap();
    assert!(decoder.step(&mut other, &good, 1).is_err());
    // As many bytes a token, in other places.
    let sizes = [
        2 * LAYERS,
        HIDDEN,
        INNER,
        HEADS,
        KV_HEADS / 2,
        HEAD_DIM,
        VOCAB,
    ];
    let swapped = CpuDecoderConfig::new(sizes, EPS);
    assert_eq!(swapped.token_bytes(), decoder.config().token_bytes());
    let mut swapped = CpuKvCache::new(&swapped, 4, 16).unwrap();
    assert!(decoder.step(&mut swapped, &good, 1).is_err());
    let mut empty = CpuDecoder::new(*decoder.config()).unwrap();
    let error = empty.step(&mut cache, &good, 1).unwrap_err().to_string();
    assert!(error.contains("weights are missing"), "{error}");
}

#[test]
fn parameters_of_another_shape_or_kind_are_errors() {
    let mut decoder = Model::new().packed(false, None);
    let wrong = Tensor::zeros([HIDDEN, VOCAB], (Kind::Float, Device::Cpu));
    assert!(decoder.set(CpuParameter::Head, 0, &[&wrong]).is_err());
    assert!(
        decoder
            .set(CpuParameter::Head, 0, &[&wrong.to_kind(Kind::Double)])
            .is_err()
    );
    assert!(decoder.set(CpuParameter::GateUp, 0, &[&wrong]).is_err());
    assert!(decoder.set(CpuParameter::InputNorm, 9, &[&wrong]).is_err());
}
