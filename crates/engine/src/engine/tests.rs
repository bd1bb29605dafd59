//! Random schedules over a small model in f64, where rounding changes no sample: every token is that of its agent decoded
//! alone, by a plain forward pass and the reference sampler.

use std::collections::BTreeMap;

use asyncthink_model::ModelSizes;
use asyncthink_torch::ReferenceSampler;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tch::{Kind, Tensor};

use super::*;
use crate::runner::PortableRunner;
use crate::sampler::{SamplingParams, Temperature};

const CONTEXT: usize = 48;

fn decoder() -> Decoder {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: 13,
        hidden_size: 8,
        intermediate_size: 12,
        num_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 4,
        rope_theta: 100.0,
        max_position_embeddings: CONTEXT as i64,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap();
    let decoder = Decoder::init(&config, Device::Cpu, 3).unwrap();
    let parameters = decoder.named_parameters().iter().map(|(name, tensor)| {
        // Freshly drawn weights give nearly uniform logits, which would hide a wrong page.
        let factor = if name.ends_with("norm.weight") { 1.0 } else { 12.0 };
        (name.clone(), tensor.to_kind(Kind::Double) * factor)
    });
    Decoder::from_parameters(&config, parameters.collect()).unwrap()
}

/// Tokens of an agent, and how each that it sampled came out.
#[derive(Clone)]
struct History {
    request: Request,
    ids: Vec<TokenId>,
    sampled: Vec<(usize, Sampled)>,
    is_running: bool,
}

impl History {
    fn new(request: &Request) -> Self {
        Self {
            ids: request.prompt.clone(),
            request: request.clone(),
            sampled: Vec::new(),
            is_running: true,
        }
    }
}

/// Compares what was sampled with one forward pass over all histories.
fn check(decoder: &Decoder, histories: &[History]) {
    let _no_grad = tch::no_grad_guard();
    let ids = histories.iter().flat_map(|one| &one.ids);
    let ids: Vec<i64> = ids.map(|id| i64::from(id.0)).collect();
    let lens: Vec<i64> = histories.iter().map(|one| one.ids.len() as i64).collect();
    let hidden = decoder.hidden_packed(&Tensor::from_slice(&ids), &lens).unwrap();
    let logits = decoder.lm_head(&hidden).unwrap();
    let logits = Vec::<f32>::try_from(logits.flatten(0, 1)).unwrap();
    let rows: Vec<&[f32]> = logits.chunks_exact(13).collect();
    let mut sampler = ReferenceSampler::default();
    let mut start = 0;
    for history in histories {
        for &(position, sampled) in &history.sampled {
            let params = &history.request.sampling;
            let banned: Vec<i64> = params.banned_ids().iter().map(|id| id.0.into()).collect();
            let settings = params.row(history.request.seed, position);
            let row = rows[start + position - 1];
            let expected = sampler.sample(row, &settings, &banned);
            assert_eq!(expected.token, i64::from(sampled.token.0));
            assert!((expected.logprob - sampled.logprob).abs() < 1e-5);
            assert!((expected.raw_logprob - sampled.raw_logprob).abs() < 1e-5);
        }
        start += history.ids.len();
    }
}

fn sampling(which: usize) -> SamplingParams {
    let at = |temperature| SamplingParams::new(Temperature::new(temperature).unwrap());
    let params = match which {
        0 => at(0.0),
        1 => at(0.7).with_top_k(Some(4)).unwrap(),
        2 => at(1.5).with_top_p(0.8).unwrap().with_banned_ids([TokenId(3)]),
        _ => at(1.0).with_min_p(0.02).unwrap(),
    };
    params.with_eos_ids([TokenId(0)])
}

fn random_schedule(decoder: &Decoder, seed: u64) -> EngineStats {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |bound: usize| (rng.next_u64() % bound as u64) as usize;
    let block_size = [1, 3, 8, 16][below(4)];
    let num_blocks = CONTEXT / block_size * [1, 2, 3, 9][below(4)];
    let mut settings = EngineSettings::new(1 + below(6));
    settings.block_size = block_size;
    settings.max_batch_tokens = settings.max_agents + below(25);
    let config = decoder.config();
    let runner = PortableRunner::of_kind(config, Device::Cpu, block_size, Kind::Double).unwrap();
    settings.max_cache_bytes = Some(runner.block_bytes() * num_blocks as u64);
    let mut engine =
        BatchedEngine::with_runner(config, Device::Cpu, settings, Box::new(runner)).unwrap();
    let mut agents: BTreeMap<AgentId, History> = BTreeMap::new();
    let mut done: Vec<History> = Vec::new();
    let prompt_lens = [1 + below(30), 1 + below(30), 1 + below(6)];
    for step in 0..14 {
        for _ in 0..below(4) {
            let which = below(3);
            let start = [1, 1, 4][which];
            let prompt = (0..prompt_lens[which]).map(|n| TokenId((start + n) as u32 % 13));
            let agent = AgentId(step * 10 + agents.len() as u64);
            if agents.contains_key(&agent) || agents.len() > 8 {
                continue;
            }
            let request = Request::new(agent, prompt.collect(), step % 3)
                .with_sampling(sampling(below(4)))
                .with_expected_tokens(below(3));
            engine.add(&request).unwrap();
            agents.insert(agent, History::new(&request));
        }
        if let Some(agent) = agents.keys().nth(below(agents.len().max(1))).copied() {
            let history = agents.get_mut(&agent).unwrap();
            match below(4) {
                0 => {
                    engine.pause(agent).unwrap();
                    history.is_running = false;
                }
                1 => {
                    engine.remove(agent).unwrap();
                    done.extend(agents.remove(&agent));
                }
                _ => {
                    let keep = history.ids.len() - below(history.ids.len().min(6) + 1);
                    let new: Vec<_> = (0..below(8)).map(|n| TokenId(n as u32 + 2)).collect();
                    if keep + new.len() > 0 && keep + new.len() < CONTEXT {
                        engine.extend(agent, keep, &new).unwrap();
                        done.push(history.clone());
                        history.ids.truncate(keep);
                        history.ids.extend(new);
                        history.sampled.retain(|&(position, _)| position < keep);
                        history.is_running = true;
                    }
                }
            }
        }
        for sampled in engine.step(decoder).unwrap() {
            let history = agents.get_mut(&sampled.agent).unwrap();
            assert!(history.is_running, "agents that are stopped sample nothing");
            history.sampled.push((history.ids.len(), sampled));
            history.ids.push(sampled.token);
            history.is_running = sampled.token != TokenId(0) && history.ids.len() < CONTEXT;
        }
    }
    done.extend(agents.into_values());
    if !done.is_empty() {
        check(decoder, &done);
    }
    engine.stats()
}

#[test]
fn every_schedule_samples_what_a_plain_forward_pass_gives() {
    asyncthink_torch::set_operation_threads(1);
    let decoder = decoder();
    let mut total = EngineStats::default();
    for seed in 0..1000 {
        let stats = random_schedule(&decoder, seed);
        total.sampled_tokens += stats.sampled_tokens;
        total.num_preemptions += stats.num_preemptions;
        total.reused_tokens += stats.reused_tokens;
        total.recomputed_tokens += stats.recomputed_tokens;
        total.block_copies += stats.block_copies;
    }
    for count in [
        total.sampled_tokens,
        total.num_preemptions,
        total.reused_tokens,
        total.recomputed_tokens,
        total.block_copies,
    ] {
        assert!(count > 100, "{total:?}");
    }
}
