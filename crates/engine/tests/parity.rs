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
use asyncthink_engine::{AgentId, BatchedEngine, EngineSettings, Request, Temperature};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes};
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

/// What one agent held at the end: ids, and the log-prob of each sampled one.
#[derive(Default)]
struct History {
    ids: Vec<i64>,
    sampled: Vec<Option<f32>>,
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
    let settings = EngineSettings::new(5, Temperature::new(TEMPERATURE).unwrap());
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
            engine
                .add(&Request {
                    agent,
                    prompt,
                    seed: step,
                })
                .unwrap();
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
                    engine.extend(agent, &ids).unwrap();
                    histories.get_mut(&agent).unwrap().give(&ids);
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
        }
    }
    let _no_grad = tch::no_grad_guard();
    let mut num_checked = 0;
    for history in histories.values() {
        let ids = Tensor::from_slice(&history.ids);
        let hidden = decoder
            .hidden_packed(&ids, &[history.ids.len() as i64])
            .unwrap();
        let logits = decoder.lm_head(&hidden).unwrap() / TEMPERATURE;
        let logprobs = logits.log_softmax(-1, Kind::Float);
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
        let settings = EngineSettings::new(8, Temperature::new(1.0).unwrap());
        let mut engine = BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap();
        for agent in 0..companions {
            let prompt = vec![TokenId(agent as u32 + 2); 4];
            engine
                .add(&Request {
                    agent: AgentId(100 + agent),
                    prompt,
                    seed: 900 + agent,
                })
                .unwrap();
        }
        let prompt = vec![TokenId(1), TokenId(2), TokenId(3)];
        engine
            .add(&Request {
                agent: AgentId(1),
                prompt,
                seed: 42,
            })
            .unwrap();
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
    let settings = EngineSettings::new(1, Temperature::new(1.0).unwrap());
    let mut engine = BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap();
    let request = |agent, len| Request {
        agent: AgentId(agent),
        prompt: vec![TokenId(1); len],
        seed: 0,
    };
    assert!(engine.add(&request(1, 0)).is_err());
    assert!(engine.add(&request(1, 257)).is_err());
    assert!(engine.extend(AgentId(9), &[]).is_err());
    engine.add(&request(1, 3)).unwrap();
    assert!(engine.add(&request(2, 3)).is_err(), "no slot is free");
    assert!(engine.extend(AgentId(1), &[TokenId(1); 254]).is_err());
    engine.remove(AgentId(1)).unwrap();
    engine.add(&request(2, 3)).unwrap();
}

/// What agents sample in 40 steps of an engine that was just told that the weights changed.
fn sample(engine: &mut BatchedEngine, decoder: &Decoder, prompt_len: usize) -> Vec<(TokenId, u32)> {
    engine.weights_changed();
    for agent in 0..3 {
        let prompt = vec![TokenId(agent as u32 + 1); prompt_len + agent as usize];
        let request = Request {
            agent: AgentId(agent),
            prompt,
            seed: agent,
        };
        engine.add(&request).unwrap();
    }
    (0..40)
        .flat_map(|_| engine.step(decoder).unwrap())
        .map(|sampled| (sampled.token, sampled.logprob.to_bits()))
        .collect()
}

#[test]
fn a_used_engine_samples_what_a_new_one_samples() {
    let decoder = decoder();
    let settings = EngineSettings::new(4, Temperature::new(1.0).unwrap());
    let new = || BatchedEngine::new(decoder.config(), Device::Cpu, settings).unwrap();
    let expected = sample(&mut new(), &decoder, 3);
    // Its cache has grown, its slots are used, and its agents were never removed.
    let mut used = new();
    sample(&mut used, &decoder, 150);
    assert!(used.fits(&decoder, settings));
    assert_eq!(sample(&mut used, &decoder, 3), expected);
    assert_eq!(used.num_free(), 1);
}
