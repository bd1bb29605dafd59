//! Random schedules over a small model: every token is that of its agent decoded alone, by a plain forward pass and the
//! reference sampler. With the portable runner in f64, where rounding changes no sample; with the CPU kernels in f32, where a
//! log-prob is also the same to the bit as in one pass over the agent alone.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "numbers of tests are small"
)]

use std::collections::BTreeMap;

use asyncthink_model::{ModelSizes, PackedDecoder, Segments};
use asyncthink_torch::ReferenceSampler;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tch::{Kind, Tensor};

use super::*;
use crate::runner::{CpuRunner, PortableRunner};
use crate::sampler::{SamplingParams, Temperature};

const CONTEXT: usize = 48;

fn decoder(kind: Kind, head_dim: i64) -> Decoder {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: 13,
        hidden_size: 8,
        intermediate_size: 12,
        num_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim,
        rope_theta: 100.0,
        max_position_embeddings: CONTEXT as i64,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap();
    let decoder = Decoder::init(&config, Device::Cpu, 3).unwrap();
    let parameters = decoder.named_parameters().iter().map(|(name, tensor)| {
        // Freshly drawn weights give nearly uniform logits, which would hide a wrong page.
        let factor = if name.ends_with("norm.weight") {
            1.0
        } else {
            12.0
        };
        (name.clone(), (tensor * factor).to_kind(kind))
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
    let hidden = decoder
        .hidden_packed(
            &Tensor::from_slice(&ids),
            &Segments::separate(&lens).unwrap(),
        )
        .unwrap();
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
        2 => at(1.5)
            .with_top_p(0.8)
            .unwrap()
            .with_banned_ids([TokenId(3)]),
        _ => at(1.0).with_min_p(0.02).unwrap(),
    };
    params.with_eos_ids([TokenId(0)])
}

/// Compares what was sampled with one pass of the kernels over each history alone, to the bit.
fn check_bits(packed: &mut PackedDecoder, histories: &[History]) {
    for history in histories.iter().filter(|one| !one.sampled.is_empty()) {
        let mut cache = packed.cache(CONTEXT.div_ceil(16), 16).unwrap();
        let (mut batch, mut sampling) = (StepBatch::default(), SamplingBatch::default());
        batch.clear();
        sampling.clear();
        let ids = history.ids.iter().map(|id| i64::from(id.0));
        batch.push_sequence(ids, 0, 0..CONTEXT.div_ceil(16) as i32);
        let params = &history.request.sampling;
        for &(position, _) in &history.sampled {
            batch.sample_rows.push(position as i32 - 1);
            let banned = params.banned_ids().iter().map(|id| i64::from(id.0));
            sampling.push(params.row(history.request.seed, position), banned);
        }
        let alone = packed.step(&mut cache, &batch, &sampling).unwrap();
        for (alone, &(_, sampled)) in alone.iter().zip(&history.sampled) {
            assert_eq!(alone.token, i64::from(sampled.token.0));
            assert_eq!(alone.logprob.to_bits(), sampled.logprob.to_bits());
            assert_eq!(alone.raw_logprob.to_bits(), sampled.raw_logprob.to_bits());
        }
    }
}

/// Makes a runner for blocks of a size.
type MakeRunner = fn(&ModelConfig, &EngineSettings) -> Box<dyn ModelRunner>;

fn random_schedule(
    decoder: &Decoder,
    seed: u64,
    block_sizes: [usize; 4],
    make_runner: MakeRunner,
) -> (EngineStats, Vec<History>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |bound: usize| (rng.next_u64() % bound as u64) as usize;
    let block_size = block_sizes[below(4)];
    let num_blocks = CONTEXT.div_ceil(block_size) * [1, 2, 3, 9][below(4)];
    let mut settings = EngineSettings::new(1 + below(6));
    settings.block_size = block_size;
    settings.max_batch_tokens = settings.max_agents + below(25);
    let config = decoder.config();
    let runner = make_runner(config, &settings);
    settings.max_cache_bytes = Some(runner.block_bytes() * num_blocks as u64);
    let mut engine = BatchedEngine::with_runner(config, Device::Cpu, settings, runner).unwrap();
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
    (engine.stats(), done)
}

/// Runs 1,000 schedules and sees that they had everything in them.
fn run_schedules(
    decoder: &Decoder,
    block_sizes: [usize; 4],
    make_runner: MakeRunner,
    mut check_more: impl FnMut(&[History]),
) {
    let mut total = EngineStats::default();
    for seed in 0..1000 {
        let (stats, histories) = random_schedule(decoder, seed, block_sizes, make_runner);
        check_more(&histories);
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

#[test]
fn every_schedule_samples_what_a_plain_forward_pass_gives() {
    asyncthink_torch::set_operation_threads(1);
    let make_runner: MakeRunner = |config, settings| {
        let (block_size, kind) = (settings.block_size, Kind::Double);
        let runner = PortableRunner::of_kind(config, Device::Cpu, block_size, kind);
        Box::new(runner.unwrap())
    };
    run_schedules(
        &decoder(Kind::Double, 4),
        [1, 3, 8, 16],
        make_runner,
        |_| {},
    );
}

#[test]
fn every_schedule_of_the_cpu_kernels_gives_the_bits_of_an_agent_alone() {
    asyncthink_torch::set_operation_threads(1);
    let make_runner: MakeRunner =
        |config, settings| Box::new(CpuRunner::new(config, settings).unwrap());
    let decoder = decoder(Kind::Float, 16);
    let mut packed = PackedDecoder::new(decoder.config(), Kind::Float).unwrap();
    packed.pack(&decoder).unwrap();
    let check_more = |histories: &[History]| check_bits(&mut packed, histories);
    run_schedules(&decoder, [16, 16, 32, 64], make_runner, check_more);
}
