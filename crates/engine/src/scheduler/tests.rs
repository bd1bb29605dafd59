//! Schedules over a model that is a hash of what the pages hold: a wrong page, a lost copy or a token computed twice
//! shows in the next sample.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers of tests are small"
)]

use std::collections::BTreeMap;

use asyncthink_torch::ReferenceSampler;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;
use crate::sampler::SamplingParams;

const VOCAB: u64 = 11;

/// Logits of the token after a context.
fn logits(context: &[i64]) -> Vec<f32> {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
    for &id in context {
        hash = (hash ^ u64::from_ne_bytes(id.to_ne_bytes())).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^= hash >> 29;
    }
    (0..VOCAB)
        .map(|id| {
            let mixed = (hash ^ id).wrapping_mul(0x94d0_49bb_1331_11eb) >> 40;
            mixed as f32 / (1 << 22) as f32
        })
        .collect()
}

/// Pages that hold tokens in place of keys and values.
struct FakeRunner {
    block_size: usize,
    pages: Vec<Option<(usize, i64)>>,
    sampler: ReferenceSampler,
}

impl FakeRunner {
    fn new(limits: &Limits) -> Self {
        Self {
            block_size: limits.block_size,
            pages: vec![None; limits.num_blocks * limits.block_size],
            sampler: ReferenceSampler::default(),
        }
    }

    fn run(&mut self, batch: &StepBatch, sampling: &SamplingBatch) -> Vec<SampledRow> {
        let size = self.block_size;
        batch.check(self.pages.len() / size, size).unwrap();
        let mut written: Vec<i32> = batch.block_copies.iter().map(|copy| copy[1]).collect();
        written.sort_unstable();
        written.dedup();
        assert_eq!(
            written.len(),
            batch.block_copies.len(),
            "two copies into a block"
        );
        for &[from, to] in &batch.block_copies {
            assert!(!written.contains(&from), "a block is copied and written");
            let (from, to) = (from as usize * size, to as usize * size);
            self.pages.copy_within(from..from + size, to);
        }
        let table = |sequence: usize| {
            let ends = &batch.cu_blocks[sequence..sequence + 2];
            &batch.blocks[ends[0] as usize..ends[1] as usize]
        };
        let rows = |sequence: usize| {
            let ends = &batch.cu_rows[sequence..sequence + 2];
            ends[0] as usize..ends[1] as usize
        };
        let place = |sequence: usize, position: usize| {
            table(sequence)[position / size] as usize * size + position % size
        };
        for sequence in 0..batch.num_sequences() {
            let first = batch.first_positions[sequence] as usize;
            for (offset, row) in rows(sequence).enumerate() {
                let position = first + offset;
                self.pages[place(sequence, position)] = Some((position, batch.ids[row]));
            }
        }
        let mut sampled = Vec::new();
        for (&row, (settings, banned)) in batch.sample_rows.iter().zip(sampling.iter()) {
            let row = row as usize;
            let sequence = (0..batch.num_sequences()).find(|&one| rows(one).contains(&row));
            let sequence = sequence.unwrap();
            let last = batch.first_positions[sequence] as usize + row - rows(sequence).start;
            let context: Vec<i64> = (0..=last)
                .map(|position| {
                    let (held, id) = self.pages[place(sequence, position)].unwrap();
                    assert_eq!(held, position, "a page of another position");
                    id
                })
                .collect();
            sampled.push(self.sampler.sample(&logits(&context), settings, banned));
        }
        sampled
    }
}

/// A scheduler with its pages, checked after every step.
struct Simulation {
    limits: Limits,
    scheduler: Scheduler,
    runner: FakeRunner,
    batch: StepBatch,
    sampling: SamplingBatch,
}

impl Simulation {
    fn new(limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            runner: FakeRunner::new(&limits),
            limits,
            batch: StepBatch::default(),
            sampling: SamplingBatch::default(),
        }
    }

    fn step(&mut self) -> Vec<Sampled> {
        self.scheduler
            .schedule(&mut self.batch, &mut self.sampling)
            .unwrap();
        assert!(self.batch.num_rows() <= self.limits.max_batch_tokens);
        assert!(self.scheduler.running.len() <= self.limits.max_running);
        assert_eq!(
            self.batch.num_rows() > 0,
            self.scheduler.has_work(),
            "there is always something to compute while somebody runs or waits"
        );
        let rows = self.runner.run(&self.batch, &self.sampling);
        let mut sampled = Vec::new();
        self.scheduler.commit(&rows, &mut sampled).unwrap();
        sampled
    }

    fn check(&self) {
        let held = self.scheduler.by_agent.values();
        let mut held: Vec<SequenceIndex> = held.copied().collect();
        held.sort_unstable();
        let sequences = held.iter().map(|&index| &self.scheduler.sequences[index]);
        self.scheduler
            .blocks
            .check(sequences.clone().map(|one| one.blocks.as_slice()));
        let holding = sequences.filter(|one| one.admitted.is_some()).count();
        assert_eq!(holding, self.scheduler.holding.len());
    }
}

fn limits(num_blocks: usize, block_size: usize, max_running: usize) -> Limits {
    Limits {
        max_running,
        max_batch_tokens: 64.max(max_running),
        block_size,
        num_blocks,
        max_sequence_tokens: num_blocks * block_size,
        block_bytes: 100,
        budget_bytes: 100 * num_blocks as u64,
    }
}

fn ids(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.map(TokenId).collect()
}

/// State of an agent as the test tracks it.
struct Twin {
    request: Request,
    tokens: Vec<TokenId>,
    is_running: bool,
    is_paused: bool,
}

impl Twin {
    fn new(request: &Request) -> Self {
        Self {
            tokens: request.prompt.clone(),
            request: request.clone(),
            is_running: true,
            is_paused: false,
        }
    }

    /// Takes a sample, which must be that of the agent decoded alone.
    fn take(&mut self, sampled: &Sampled) {
        let context: Vec<i64> = self.tokens.iter().map(|id| i64::from(id.0)).collect();
        let sampling = &self.request.sampling;
        let banned: Vec<i64> = sampling.banned_ids().iter().map(|id| id.0.into()).collect();
        let expected = ReferenceSampler::default().sample(
            &logits(&context),
            &sampling.row(self.request.seed, self.tokens.len()),
            &banned,
        );
        assert_eq!(i64::from(sampled.token.0), expected.token);
        assert_eq!(sampled.logprob.to_bits(), expected.logprob.to_bits());
        assert!(self.is_running);
        self.tokens.push(sampled.token);
        self.is_running = !sampling.eos_ids().contains(&sampled.token);
    }
}

fn sampling() -> SamplingParams {
    SamplingParams::default()
        .with_banned_ids([TokenId(10)])
        .with_eos_ids([TokenId(0)])
}

/// One schedule of arrivals, pauses, injections with cuts and removals.
fn random_schedule(seed: u64) -> EngineStats {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |bound: usize| (rng.next_u64() % bound as u64) as usize;
    let block_size = [1, 2, 4, 16][below(4)];
    // From a cache of one sequence to one that is never full.
    let num_blocks = 64 / block_size * [1, 2, 4, 20][below(4)];
    let mut limits = limits(num_blocks, block_size, 1 + below(8));
    limits.max_sequence_tokens = 64;
    limits.max_batch_tokens = limits.max_running + below(30);
    let mut simulation = Simulation::new(limits);
    let mut agents: BTreeMap<AgentId, Twin> = BTreeMap::new();
    // Few prompts, so that they meet; one is the head of another.
    let prompt_lens = [1 + below(40), 1 + below(40), 1 + below(10)];
    for step in 0..60 {
        for _ in 0..below(4) {
            let agent = AgentId(step * 10 + agents.len() as u64);
            let which = below(3);
            let start = [0, 0, 5][which];
            let len = prompt_lens[which] as u32;
            let request = Request::new(agent, ids(start..start + len), step % 5)
                .with_sampling(sampling())
                .with_expected_tokens(below(3));
            if agents.contains_key(&agent) || agents.len() > 12 {
                continue;
            }
            simulation.scheduler.add(&request).unwrap();
            agents.insert(agent, Twin::new(&request));
        }
        for _ in 0..below(3) {
            let Some(agent) = agents.keys().nth(below(agents.len().max(1))).copied() else {
                continue;
            };
            let twin = agents.get_mut(&agent).unwrap();
            match below(5) {
                0 => {
                    simulation.scheduler.pause(agent).unwrap();
                    twin.is_paused |= twin.is_running;
                    twin.is_running = false;
                }
                4 => {
                    simulation.scheduler.resume(agent).unwrap();
                    twin.is_running |= twin.is_paused;
                    twin.is_paused = false;
                }
                1 => {
                    simulation.scheduler.remove(agent).unwrap();
                    agents.remove(&agent);
                }
                _ => {
                    let keep = twin.tokens.len() - below(twin.tokens.len().min(9) + 1);
                    let new = ids(3..3 + below(8) as u32);
                    if keep + new.len() > 0 && keep + new.len() < 64 {
                        simulation.scheduler.extend(agent, keep, &new).unwrap();
                        twin.tokens.truncate(keep);
                        twin.tokens.extend(new);
                        twin.is_running = true;
                        twin.is_paused = false;
                    }
                }
            }
        }
        for sampled in simulation.step() {
            agents.get_mut(&sampled.agent).unwrap().take(&sampled);
        }
        simulation.check();
        for twin in agents.values_mut() {
            twin.is_running &= twin.tokens.len() < 64;
        }
    }
    for &agent in agents.keys() {
        simulation.scheduler.remove(agent).unwrap();
    }
    simulation.check();
    assert_eq!(simulation.scheduler.blocks.num_used(), 0);
    simulation.scheduler.stats()
}

#[test]
fn every_schedule_samples_what_agents_alone_sample() {
    let (mut preempted, mut shared, mut copied, mut again) = (0, 0, 0, 0);
    for seed in 0..1000 {
        let stats = random_schedule(seed);
        preempted += u64::from(stats.num_preemptions > 0);
        shared += u64::from(stats.reused_tokens > 0);
        copied += u64::from(stats.block_copies > 0);
        again += u64::from(stats.recomputed_tokens > 0);
    }
    for count in [preempted, shared, copied, again] {
        assert!(count > 100, "{preempted} {shared} {copied} {again}");
    }
}

#[test]
fn ten_thousand_agents_all_finish_within_the_budget() {
    let mut limits = limits(600, 16, 200);
    limits.max_batch_tokens = 512;
    let mut simulation = Simulation::new(limits);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut below = |bound: u64| (rng.next_u64() % bound) as usize;
    let mut left: BTreeMap<AgentId, usize> = BTreeMap::new();
    let mut prompt_tokens = 0;
    for agent in 0..10_000 {
        // Groups of eight with one prompt; now and then one that needs many steps to prefill.
        let group = (agent / 8) as u32;
        let len = if group.is_multiple_of(100) {
            900
        } else {
            20 + group % 60
        };
        let prompt = (0..len).map(|n| TokenId(n * 7 + group % 500)).collect();
        let num_wanted = 1 + below(200);
        let request = Request::new(AgentId(agent), prompt, agent)
            .with_expected_tokens(num_wanted.next_multiple_of(30));
        prompt_tokens += request.prompt.len() as u64;
        simulation.scheduler.add(&request).unwrap();
        left.insert(request.agent, num_wanted);
    }
    let total: u64 = left.values().map(|&num| num as u64).sum();
    let mut longest_wait = 0;
    let mut waited = 0;
    for _ in 0..20_000 {
        let sampled = simulation.step();
        waited = if sampled.is_empty() { waited + 1 } else { 0 };
        longest_wait = longest_wait.max(waited);
        for one in sampled {
            let num_left = left.get_mut(&one.agent).unwrap();
            *num_left -= 1;
            if *num_left == 0 {
                left.remove(&one.agent);
                simulation.scheduler.remove(one.agent).unwrap();
            }
        }
        if left.is_empty() {
            break;
        }
    }
    assert!(left.is_empty(), "{} agents starve", left.len());
    simulation.check();
    let stats = simulation.scheduler.stats();
    assert_eq!(stats.sampled_tokens, total);
    assert!(stats.num_preemptions > 0 && stats.recomputed_tokens > 0);
    assert!(stats.peak_blocks <= 600);
    // Most of a group's prompt is computed once.
    assert!(stats.prefilled_tokens < prompt_tokens / 4, "{stats:?}");
    assert!(longest_wait < 10, "{longest_wait} steps without a sample");
}

#[test]
fn the_prompt_of_a_group_is_computed_once() {
    for prompt_len in [1, 15, 16, 17, 64, 200] {
        let mut simulation = Simulation::new(limits(400, 16, 16));
        for agent in 0..8 {
            let request = Request::new(AgentId(agent), ids(0..prompt_len), agent);
            simulation.scheduler.add(&request).unwrap();
        }
        while simulation.step().is_empty() {}
        let stats = simulation.scheduler.stats();
        assert_eq!(stats.prefilled_tokens, u64::from(prompt_len));
        assert_eq!(stats.reused_tokens, 7 * u64::from(prompt_len));
        assert_eq!(stats.peak_blocks, u64::from(prompt_len.div_ceil(16)));
        assert_eq!(stats.sampled_tokens, 8);
        assert_eq!(simulation.step().len(), 8);
        // The last one to write has the block to itself.
        let copies = if prompt_len % 16 == 0 { 0 } else { 7 };
        assert_eq!(simulation.scheduler.stats().block_copies, copies);
    }
}

#[test]
fn a_common_head_is_computed_once_and_those_who_need_it_wait() {
    let mut simulation = Simulation::new(limits(400, 16, 16));
    for agent in 0..4 {
        // 40 tokens in common, of which two blocks are whole, then five of its own.
        let mut prompt = ids(0..40);
        prompt.extend([TokenId(50 + agent); 5]);
        let request = Request::new(AgentId(agent.into()), prompt, 1);
        simulation.scheduler.add(&request).unwrap();
    }
    while simulation.scheduler.stats().sampled_tokens < 4 {
        simulation.step();
    }
    let stats = simulation.scheduler.stats();
    assert_eq!(
        (stats.prefilled_tokens, stats.reused_tokens),
        (45 + 3 * 13, 3 * 32)
    );
}

#[test]
fn injected_text_is_all_that_is_computed_after_a_pause() {
    let mut simulation = Simulation::new(limits(400, 16, 16));
    let agent = AgentId(1);
    simulation
        .scheduler
        .add(&Request::new(agent, ids(0..50), 1))
        .unwrap();
    for _ in 0..5 {
        simulation.step();
    }
    simulation.scheduler.pause(agent).unwrap();
    simulation
        .scheduler
        .extend(agent, 55, &ids(20..27))
        .unwrap();
    assert_eq!(simulation.step().len(), 1);
    // The last sampled token is computed with the injected ones.
    assert_eq!(simulation.batch.num_rows(), 8);
    assert_eq!(simulation.scheduler.stats().prefilled_tokens, 50 + 7);

    // A sampled token that is replaced costs nothing: it was not computed.
    let num_tokens = simulation.scheduler.num_tokens(agent).unwrap();
    simulation
        .scheduler
        .extend(agent, num_tokens - 1, &[TokenId(3)])
        .unwrap();
    assert_eq!(simulation.step().len(), 1);
    assert_eq!(simulation.batch.num_rows(), 1);
    assert!(simulation.batch.block_copies.is_empty());

    // A cut into the prompt leaves the known block alone.
    simulation
        .scheduler
        .extend(agent, 20, &[TokenId(3)])
        .unwrap();
    assert_eq!(simulation.step().len(), 1);
    assert_eq!(simulation.batch.num_rows(), 1);
    assert_eq!(simulation.batch.block_copies.len(), 1);
    simulation.check();
}

#[test]
fn the_longest_expected_begins_first_then_the_order_of_arrival() {
    let mut simulation = Simulation::new(limits(400, 16, 2));
    for (agent, expected) in [(1, 5), (2, 9), (3, 9), (4, 70)] {
        let prompt = ids(agent * 10..agent * 10 + 3);
        let request = Request::new(AgentId(agent.into()), prompt, 1);
        let request = request.with_expected_tokens(expected);
        simulation.scheduler.add(&request).unwrap();
    }
    let mut order = Vec::new();
    for _ in 0..2 {
        for sampled in simulation.step() {
            order.push(sampled.agent.0);
            simulation.scheduler.remove(sampled.agent).unwrap();
        }
    }
    assert_eq!(order, [4, 2, 3, 1]);
}

#[test]
fn agents_end_themselves_at_an_end_of_sequence_and_at_the_end_of_the_context() {
    let mut limits = limits(400, 16, 4);
    limits.max_sequence_tokens = 30;
    let mut simulation = Simulation::new(limits);
    for seed in 0..4 {
        let request = Request::new(AgentId(seed), ids(0..9), seed);
        let request = if seed == 0 {
            request
        } else {
            request.with_sampling(sampling())
        };
        simulation.scheduler.add(&request).unwrap();
    }
    let mut last = BTreeMap::new();
    while simulation.scheduler.has_work() {
        for sampled in simulation.step() {
            last.insert(sampled.agent.0, sampled.token);
        }
    }
    assert_eq!(simulation.scheduler.num_tokens(AgentId(0)).unwrap(), 30);
    assert!((1..4).all(|agent| {
        let is_full = simulation.scheduler.num_tokens(AgentId(agent)).unwrap() == 30;
        last[&agent] == TokenId(0) || is_full
    }));
    assert!((1..4).any(|agent| last[&agent] == TokenId(0)));
    // One that is cut runs on.
    simulation.scheduler.extend(AgentId(1), 9, &[]).unwrap();
    assert_eq!(simulation.step().len(), 1);
}

#[test]
fn a_failed_step_leaves_agents_that_begin_again() {
    let mut simulation = Simulation::new(limits(40, 4, 8));
    for agent in 0..3 {
        let request = Request::new(AgentId(agent), ids(0..10), agent);
        simulation.scheduler.add(&request).unwrap();
    }
    simulation.step();
    let Simulation {
        scheduler,
        batch,
        sampling,
        ..
    } = &mut simulation;
    scheduler.schedule(batch, sampling).unwrap();
    assert!(!batch.block_copies.is_empty());
    scheduler.fail_step();
    simulation.check();
    assert_eq!(simulation.scheduler.blocks.num_used(), 0);
    // Blocks that were known before are found again.
    assert_eq!(simulation.step().len(), 3);
    assert!(simulation.scheduler.stats().recomputed_tokens > 0);
    let rows = [SampledRow {
        token: 0,
        logprob: f32::NAN,
        raw_logprob: 0.0,
    }; 3];
    let Simulation {
        scheduler,
        batch,
        sampling,
        ..
    } = &mut simulation;
    scheduler.schedule(batch, sampling).unwrap();
    let error = scheduler.commit(&rows, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::NonFinite(_)));
    simulation.check();
}

#[test]
fn what_cannot_fit_is_refused_with_the_arithmetic() {
    let mut limits = limits(4, 16, 4);
    limits.max_sequence_tokens = 1000;
    let mut simulation = Simulation::new(limits);
    let scheduler = &mut simulation.scheduler;
    let error = scheduler.add(&Request::new(AgentId(1), ids(0..65), 1));
    let message = "the KV cache cannot hold a sequence of 65 tokens: it takes 5 blocks of 16 tokens, and 4 blocks of 100 \
                   bytes fit into the budget of 400 bytes";
    assert_eq!(error.unwrap_err().to_string(), message);
    scheduler
        .add(&Request::new(AgentId(1), ids(0..63), 1))
        .unwrap();
    assert!(scheduler.extend(AgentId(1), 63, &ids(0..2)).is_err());
    assert!(scheduler.extend(AgentId(1), 64, &[]).is_err());
    assert!(scheduler.extend(AgentId(1), 0, &[]).is_err());
    simulation.step();
    simulation.step();
    let Simulation {
        scheduler,
        batch,
        sampling,
        ..
    } = &mut simulation;
    let error = scheduler.schedule(batch, sampling).unwrap_err();
    assert_eq!(error.to_string(), message);
}
