//! Agents enter, wait, are extended and leave at random steps; every sampled log-prob must equal that of a plain
//! forward pass over the same ids, whoever shared the batch and whichever cache row an agent had.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a panic is a failed test, and the numbers are small"
)]

use std::collections::BTreeMap;

use asyncthink_data::TokenId;
use asyncthink_engine::{
    AgentId, BatchedEngine, EngineSettings, Error, Request, SamplingParams, Temperature,
};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Segments};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tch::{Device, Kind, Tensor};

const VOCAB: u64 = 37;
const TEMPERATURE: f64 = 0.8;

fn decoder() -> Decoder {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: VOCAB as i64,
        hidden_size: 32,
        intermediate_size: 48,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        rope_theta: 10_000.0,
        max_position_embeddings: 256,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap();
    let decoder = Decoder::init(&config, Device::Cpu, 11).unwrap();
    // Freshly drawn weights give nearly uniform logits, which would hide a wrong cache row.
    tch::no_grad(|| {
        for (name, tensor) in decoder.named_parameters() {
            if !name.ends_with("norm.weight") {
                let _ = tensor.shallow_clone().g_mul_scalar_(8.0);
            }
        }
    });
    decoder
}

fn request(agent: AgentId, prompt: Vec<TokenId>, seed: u64) -> Request {
    let sampling = SamplingParams::new(Temperature::new(TEMPERATURE).unwrap());
    Request::new(agent, prompt, seed).with_sampling(sampling)
}

/// What one agent held at the end: ids, and the log-prob of each sampled one.
#[derive(Default)]
struct History {
    ids: Vec<i64>,
    sampled: Vec<Option<f32>>,
    /// Raw log-prob of each sampled position.
    raw: Vec<(usize, f32)>,
}

impl History {
    fn give(&mut self, ids: &[TokenId]) {
        self.ids.extend(ids.iter().map(|id| i64::from(id.0)));
        self.sampled.resize(self.ids.len(), None);
    }
}

#[test]
fn sampled_logprobs_equal_a_plain_forward_pass() {
    let decoder = decoder();
    let settings = EngineSettings::new(5);
    let mut engine = BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut below = |bound: u64| rng.next_u64() % bound;
    let mut histories: BTreeMap<AgentId, History> = BTreeMap::new();
    let mut live: Vec<(AgentId, bool)> = Vec::new();
    for step in 0..150 {
        if engine.num_free() > 0 && below(3) == 0 {
            let agent = AgentId(step * 7 % 1009);
            let prompt: Vec<TokenId> = (0..=below(9))
                .map(|_| TokenId(below(VOCAB) as u32))
                .collect();
            histories.entry(agent).or_default().give(&prompt);
            engine.add(&request(agent, prompt, step)).unwrap();
            live.push((agent, true));
        }
        if !live.is_empty() {
            let index = below(live.len() as u64) as usize;
            let (agent, running) = live[index];
            match below(6) {
                0 => {
                    engine.pause(agent).unwrap();
                    live[index].1 = false;
                }
                1 | 2 if !running => {
                    let ids: Vec<TokenId> = (0..below(6))
                        .map(|_| TokenId(below(VOCAB) as u32))
                        .collect();
                    let history = histories.get_mut(&agent).unwrap();
                    let keep_tokens = engine.num_tokens(agent).unwrap();
                    assert_eq!(keep_tokens, history.ids.len());
                    engine.extend(agent, keep_tokens, &ids).unwrap();
                    history.give(&ids);
                    live[index].1 = true;
                }
                3 if below(4) == 0 => {
                    engine.remove(agent).unwrap();
                    live.remove(index);
                }
                _ => {}
            }
        }
        let sampled = engine.step(&decoder).unwrap();
        assert_eq!(
            sampled.len(),
            live.iter().filter(|(_, running)| *running).count()
        );
        for sample in sampled {
            let history = histories.get_mut(&sample.agent).unwrap();
            history.ids.push(i64::from(sample.token.0));
            history.sampled.push(Some(sample.logprob));
            history
                .raw
                .push((history.ids.len() - 1, sample.raw_logprob));
        }
    }
    let _no_grad = tch::no_grad_guard();
    let mut num_checked = 0;
    for history in histories.values() {
        let ids = Tensor::from_slice(&history.ids);
        let hidden = decoder
            .hidden_packed(
                &ids,
                &Segments::separate(&[history.ids.len() as i64]).unwrap(),
            )
            .unwrap();
        let logits = decoder.lm_head(&hidden).unwrap();
        let logprobs = (&logits / TEMPERATURE).log_softmax(-1, Kind::Float);
        let raw = logits.log_softmax(-1, Kind::Float);
        for &(position, ours) in &history.raw {
            let expected = raw.double_value(&[position as i64 - 1, history.ids[position]]);
            assert!((expected - f64::from(ours)).abs() < 1e-4);
        }
        for (position, sampled) in history.sampled.iter().enumerate() {
            if let Some(sampled) = sampled {
                let expected = logprobs.double_value(&[position as i64 - 1, history.ids[position]]);
                assert!(
                    (expected - f64::from(*sampled)).abs() < 1e-4,
                    "{expected} and {sampled} differ"
                );
                num_checked += 1;
            }
        }
    }
    assert!(num_checked > 200, "only {num_checked} tokens were sampled");
}

#[test]
fn an_agent_samples_the_same_tokens_whoever_shares_the_batch() {
    let decoder = decoder();
    let run = |companions: u64| {
        let settings = EngineSettings::new(8);
        let mut engine = BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap();
        for agent in 0..companions {
            let prompt = vec![TokenId(agent as u32 + 2); 4];
            engine
                .add(&request(AgentId(100 + agent), prompt, 900 + agent))
                .unwrap();
        }
        let prompt = vec![TokenId(1), TokenId(2), TokenId(3)];
        engine.add(&request(AgentId(1), prompt, 42)).unwrap();
        (0..30)
            .flat_map(|_| engine.step(&decoder).unwrap())
            .filter(|sample| sample.agent == AgentId(1))
            .map(|sample| sample.token)
            .collect::<Vec<_>>()
    };
    assert_eq!(run(0), run(6));
}

#[test]
fn misuse_is_an_error() {
    let decoder = decoder();
    let settings = EngineSettings::new(1);
    let mut engine = BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap();
    let request = |agent, len| request(AgentId(agent), vec![TokenId(1); len], 0);
    assert!(engine.add(&request(1, 0)).is_err());
    assert!(engine.add(&request(1, 257)).is_err());
    assert!(engine.extend(AgentId(9), 0, &[]).is_err());
    engine.add(&request(1, 3)).unwrap();
    assert!(engine.add(&request(1, 3)).is_err(), "the name is taken");
    assert!(engine.extend(AgentId(1), 3, &[TokenId(1); 254]).is_err());
    assert!(engine.extend(AgentId(1), 4, &[]).is_err());
    // More agents than may run at a time wait.
    assert_eq!(engine.num_free(), 0);
    engine.add(&request(2, 3)).unwrap();
    assert_eq!(engine.step(&decoder).unwrap()[0].agent, AgentId(1));
    engine.remove(AgentId(1)).unwrap();
    assert_eq!(engine.step(&decoder).unwrap()[0].agent, AgentId(2));
    for settings in [
        EngineSettings::new(0),
        EngineSettings {
            block_size: 0,
            ..settings
        },
        EngineSettings {
            max_batch_tokens: 0,
            ..settings
        },
    ] {
        let error = BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap_err();
        assert!(matches!(error, Error::Zero(_)));
    }
    // Blocks of this size are not those of the CPU kernels, which compute in either type.
    let settings = EngineSettings {
        dtype: Some(Kind::BFloat16),
        block_size: 8,
        ..settings
    };
    let error = BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sampling in bf16 is not supported for a model that computes in f32"
    );
}

#[test]
fn a_cache_is_as_large_as_its_budget_and_one_of_no_block_is_refused() {
    let decoder = decoder();
    let new = |max_cache_bytes| {
        let settings = EngineSettings {
            max_cache_bytes,
            ..EngineSettings::new(3)
        };
        BatchedEngine::new(decoder.config(), Device::Cpu, settings)
    };
    // Keys and values of 2 layers, 16 tokens, 2 heads of 16 values, 4 bytes each.
    let block_bytes = 2 * 2 * 16 * 2 * 16 * 4;
    let engine = new(Some(5 * block_bytes + 7)).unwrap();
    assert_eq!(
        (engine.num_blocks(), engine.block_bytes()),
        (5, block_bytes)
    );
    // Never more than three sequences of the model's context need.
    assert_eq!(new(None).unwrap().num_blocks(), 3 * 256 / 16);
    assert_eq!(new(Some(1 << 40)).unwrap().num_blocks(), 3 * 256 / 16);
    let error = new(Some(block_bytes - 1)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the KV cache cannot hold a sequence of 1 tokens: it takes 1 blocks of 16 tokens, and 0 blocks of 8192 bytes fit \
         into the budget of 8191 bytes"
    );
}

/// What agents sample in 40 steps of an engine that was just told that the weights changed.
fn sample(engine: &mut BatchedEngine, decoder: &Decoder, prompt_len: usize) -> Vec<(TokenId, u32)> {
    engine.weights_changed();
    for agent in 0..3 {
        let prompt = vec![TokenId(agent as u32 + 1); prompt_len + agent as usize];
        engine.add(&request(AgentId(agent), prompt, agent)).unwrap();
    }
    (0..40)
        .flat_map(|_| engine.step(decoder).unwrap())
        .map(|sampled| (sampled.token, sampled.logprob.to_bits()))
        .collect()
}

#[test]
fn a_used_engine_samples_what_a_new_one_samples() {
    let decoder = decoder();
    let settings = EngineSettings::new(4);
    let new = || BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap();
    let expected = sample(&mut new(), &decoder, 3);
    // Its cache has grown, its blocks are known by their content, and its agents were never removed.
    let mut used = new();
    sample(&mut used, &decoder, 150);
    assert!(used.fits(&decoder, settings));
    assert_eq!(sample(&mut used, &decoder, 3), expected);
    assert_eq!(used.num_free(), 1);
}

/// An engine in bf16 samples from a decoder in f32: its log-probs are near those of the decoder, and not the same.
#[test]
fn an_engine_in_bf16_is_near_its_decoder_in_f32() {
    let decoder = decoder();
    let settings = EngineSettings {
        dtype: Some(Kind::BFloat16),
        ..EngineSettings::new(4)
    };
    let mut engine = BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap();
    let mut ids: Vec<TokenId> = (1..20).map(TokenId).collect();
    let prompt_len = ids.len();
    engine
        .add(&Request::new(AgentId(1), ids.clone(), 3))
        .unwrap();
    let mut logprobs = Vec::new();
    for _ in 0..40 {
        for sampled in engine.step(&decoder).unwrap() {
            ids.push(sampled.token);
            logprobs.push(sampled.logprob);
        }
    }
    assert_eq!(logprobs.len(), 40);
    let all: Vec<i64> = ids.iter().map(|id| i64::from(id.0)).collect();
    let _no_grad = tch::no_grad_guard();
    let hidden = decoder
        .hidden_packed(
            &Tensor::from_slice(&all),
            &Segments::separate(&[all.len() as i64]).unwrap(),
        )
        .unwrap();
    let expected = decoder
        .lm_head(&hidden)
        .unwrap()
        .log_softmax(-1, Kind::Float);
    let differences = logprobs.iter().enumerate().map(|(index, logprob)| {
        let position = prompt_len + index;
        (expected.double_value(&[position as i64 - 1, all[position]]) - f64::from(*logprob)).abs()
    });
    let largest = differences.fold(0.0, f64::max);
    // These weights are drawn wide: logits reach tens.
    assert!(largest > 1e-5 && largest < 0.5, "{largest}");
}
