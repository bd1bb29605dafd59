//! The sampler's log-probs against a plain forward pass, the one that training differentiates.

use std::collections::BTreeMap;

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, BatchedEngine, EngineSettings, Request};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Segments};
use tch::{Device, Kind, Tensor};

use super::check::Check;

/// Nats that rounding explains in f32, at the logits of [`decoder`].
const F32_BOUND: f64 = 1e-4;

/// Nats that rounding of weights and operands to 8 bits explains.
const BF16_BOUND: f64 = 0.1;

const VOCAB: i64 = 211;

type Error = Box<dyn std::error::Error>;

/// Decodes on a device in f32 and bf16 with prompts that are shared, cut in portions and preempted.
pub(super) fn checks(device: Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (dtype, kind, bound) in [
        ("f32", Kind::Float, F32_BOUND),
        ("bf16", Kind::BFloat16, BF16_BOUND),
    ] {
        let name = format!("sampler against trainer, {dtype}");
        checks.push(match largest_difference(device, kind) {
            Ok(difference) => Check::within(name, difference, bound),
            Err(error) => Check::new(name, Err(error.to_string())),
        });
    }
    checks
}

/// A small decoder with wide logits: with nearly uniform ones a wrong key would not show.
fn decoder(device: Device) -> Result<Decoder, Error> {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: VOCAB,
        hidden_size: 96,
        intermediate_size: 160,
        num_layers: 3,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 64,
        rope_theta: 10_000.0,
        max_position_embeddings: 512,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })?;
    let decoder = Decoder::init(&config, device, 7)?;
    tch::no_grad(|| {
        for (name, tensor) in decoder.named_parameters() {
            if !name.ends_with("norm.weight") {
                let _ = tensor.shallow_clone().g_mul_scalar_(4.0);
            }
        }
    });
    Ok(decoder)
}

fn largest_difference(device: Device, kind: Kind) -> Result<f64, Error> {
    let decoder = decoder(device)?;
    let settings = EngineSettings {
        max_batch_tokens: 48,
        dtype: Some(kind),
        // 12 agents of up to 140 tokens need more blocks than these: some are preempted.
        max_cache_bytes: Some(cache_bytes(decoder.config(), kind)),
        ..EngineSettings::new(12)
    };
    let mut engine = BatchedEngine::new(decoder.config(), device, settings)?;
    let mut ids: BTreeMap<AgentId, Vec<TokenId>> = BTreeMap::new();
    let mut sampled: Vec<(AgentId, usize, f32)> = Vec::new();
    for agent in 0..12_u32 {
        // Three prompts, each of four agents.
        let prompt = (0..90 + agent / 4).map(|n| TokenId((n * 7 + agent / 4 * 31) % 211));
        let prompt: Vec<TokenId> = prompt.collect();
        let agent = AgentId(agent.into());
        engine.add(&Request::new(agent, prompt.clone(), agent.0))?;
        ids.insert(agent, prompt);
    }
    let target_tokens = 48;
    while engine.has_work() {
        for token in engine.step(&decoder)? {
            let all = ids.entry(token.agent).or_default();
            sampled.push((token.agent, all.len(), token.logprob));
            all.push(token.token);
            if all.len() >= 90 + target_tokens {
                engine.remove(token.agent)?;
            }
        }
    }
    let _no_grad = tch::no_grad_guard();
    let mut largest = 0.0_f64;
    for (agent, all) in &ids {
        let values: Vec<i64> = all.iter().map(|id| i64::from(id.0)).collect();
        let count = i64::try_from(values.len())?;
        let tensor = Tensor::from_slice(&values).f_to_device(device)?;
        let hidden = decoder.hidden_packed(&tensor, &Segments::separate(&[count])?)?;
        let logprobs = decoder
            .lm_head(&hidden)?
            .f_log_softmax(-1, Kind::Float)?
            .f_to_device(Device::Cpu)?;
        let own = sampled.iter().filter(|(name, ..)| name == agent);
        for &(_, position, logprob) in own {
            let row = i64::try_from(position)? - 1;
            let expected = logprobs.f_double_value(&[row, values[position]])?;
            let difference = (expected - f64::from(logprob)).abs();
            if difference.is_nan() {
                return Ok(f64::NAN);
            }
            largest = largest.max(difference);
        }
    }
    Ok(largest)
}

/// Bytes of 40 blocks.
fn cache_bytes(config: &ModelConfig, kind: Kind) -> u64 {
    let values = 2 * config.num_key_value_heads * config.head_dim * 16 * 40;
    let layers = config.num_hidden_layers as u64;
    u64::try_from(values).unwrap_or(0) * layers * kind.elt_size_in_bytes() as u64
}
