//! Episodes over the engine with a model that is made to decode written scripts: how much of their contexts is computed,
//! and that nothing of an episode depends on the engine's limits.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a panic is a failed test, and the numbers are small"
)]

#[path = "scripted/backend.rs"]
#[allow(dead_code, reason = "shared with another test, which uses all of it")]
mod backend;

use std::collections::BTreeMap;

use asyncthink_data::{TokenId, Tokenizer};
use asyncthink_engine::{AgentId, BatchedEngine, EngineSettings, EngineStats, Request};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes};
use asyncthink_protocol::Overflow;
use asyncthink_rollout::{
    AgentBackend, AgentToken, EngineBackend, Episode, Query, Result, rollout,
};
use tch::Device;

use backend::{query, settings, templates, tokenizer};

const ORGANIZER: &str =
    "a<FORK1> one</FORK1><FORK2> two</FORK2> b<JOIN1> c<JOIN2><ANSWER>7</ANSWER>";
const WORKERS: [(&str, &str); 2] = [
    ("sub  one", " a a c<RETURN>1</RETURN>"),
    ("sub  two", " a c c c<RETURN>2 2</RETURN>"),
];

/// The engine's tokens, each replaced by the next of a script: the model computes what the script says.
struct ScriptedEngine<'a> {
    inner: EngineBackend<'a>,
    tokenizer: &'a Tokenizer,
    agents: BTreeMap<AgentId, Playing>,
}

struct Playing {
    script: Vec<TokenId>,
    next: usize,
    num_tokens: usize,
}

impl AgentBackend for ScriptedEngine<'_> {
    fn start(&mut self, request: Request) -> Result<()> {
        let prompt = self.tokenizer.decode(&request.prompt);
        let scripts = WORKERS.iter();
        let script = scripts.clone().find(|(start, _)| prompt == *start);
        let script = script.map_or(ORGANIZER, |(_, script)| script);
        let last = request.prompt.last().copied();
        let playing = Playing {
            script: self.tokenizer.encode_continuation(script, last)?,
            next: 0,
            num_tokens: request.prompt.len(),
        };
        self.agents.insert(request.agent, playing);
        self.inner.start(request)
    }

    fn inject(&mut self, agent: AgentId, keep_tokens: usize, ids: &[TokenId]) -> Result<()> {
        let playing = self.agents.get_mut(&agent).unwrap();
        playing.next -= playing.num_tokens - keep_tokens;
        playing.num_tokens = keep_tokens + ids.len();
        self.inner.inject(agent, keep_tokens, ids)
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.inner.pause(agent)
    }

    fn hold(&mut self, agent: AgentId) -> Result<()> {
        self.inner.hold(agent)
    }

    fn resume(&mut self, agent: AgentId) -> Result<()> {
        self.inner.resume(agent)
    }

    fn cancel(&mut self, agent: AgentId) -> Result<()> {
        self.agents.remove(&agent);
        self.inner.cancel(agent)
    }

    fn poll(&mut self) -> Result<Vec<AgentToken>> {
        let eos = self.tokenizer.eos_ids()[0];
        let mut tokens = self.inner.poll()?;
        for decoded in &mut tokens {
            let playing = self.agents.get_mut(&decoded.agent).unwrap();
            decoded.token = playing.script.get(playing.next).copied().unwrap_or(eos);
            decoded.logprob = Some(0.0);
            playing.next += 1;
            // The last token is not in the cache yet: to replace it costs nothing.
            self.inner
                .inject(decoded.agent, playing.num_tokens, &[decoded.token])?;
            playing.num_tokens += 1;
        }
        Ok(tokens)
    }

    fn num_free(&self) -> usize {
        self.inner.num_free()
    }

    fn max_sequence_tokens(&self) -> usize {
        self.inner.max_sequence_tokens()
    }
}

fn play(queries: &[Query], settings_of_engine: EngineSettings) -> (Vec<Episode>, EngineStats) {
    let tokenizer = tokenizer();
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: tokenizer.vocab_size() as i64,
        hidden_size: 16,
        intermediate_size: 24,
        num_layers: 1,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 8,
        rope_theta: 10_000.0,
        max_position_embeddings: 256,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap();
    let decoder = Decoder::init(&config, Device::Cpu, 1).unwrap();
    let mut engine = BatchedEngine::new(&config, Device::Cpu, settings_of_engine).unwrap();
    let mut backend = ScriptedEngine {
        inner: EngineBackend::new(&mut engine, &decoder),
        tokenizer: &tokenizer,
        agents: BTreeMap::new(),
    };
    let episodes = rollout(
        &mut backend,
        &tokenizer,
        &templates(),
        &settings(3, Overflow::Error),
        queries,
        &mut |_| true,
    )
    .unwrap();
    (episodes, engine.stats())
}

fn group() -> Vec<Query> {
    let tokenizer = tokenizer();
    (0..5)
        .map(|sample_index| Query {
            sample_index,
            seed: sample_index as u64,
            ..query(&tokenizer, 0)
        })
        .collect()
}

#[test]
fn prompts_are_computed_once_and_after_a_join_only_what_is_injected() {
    let queries = group();
    let (episodes, stats) = play(&queries, EngineSettings::new(15));
    let num_prompt = queries[0].prompt.ids.len();
    let num_workers: usize = episodes[0]
        .workers
        .iter()
        .map(|one| one.record.prompt_tokens())
        .sum();
    let injected = |episode: &Episode| {
        let organizer = &episode.organizer;
        organizer.ids().len() - organizer.num_decoded() - organizer.prompt_tokens()
    };
    let num_injected: usize = episodes.iter().map(injected).sum();
    assert!(num_injected >= 5 * 5);
    assert!(
        episodes
            .iter()
            .all(|one| one.answer() == Some("7") && one.num_joins == 2)
    );
    let num_decoded: usize = episodes.iter().map(Episode::decoded_tokens).sum();
    // Decoded tokens count too, as the script replaces them; the last one of each of the 15 agents is not computed.
    assert_eq!(
        stats.prefilled_tokens as usize,
        num_prompt + num_workers + num_injected + num_decoded - 15
    );
    assert_eq!(stats.reused_tokens as usize, 4 * (num_prompt + num_workers));
    assert_eq!((stats.recomputed_tokens, stats.num_preemptions), (0, 0));
    // An organizer that waits at a Join has nothing sampled in the step of the Join.
    assert_eq!(stats.sampled_tokens as usize, num_decoded);
}

#[test]
fn episodes_do_not_depend_on_the_limits_of_the_engine() {
    let queries = group();
    let (expected, _) = play(&queries, EngineSettings::new(15));
    let mut num_preemptions = 0;
    for (max_agents, max_batch_tokens, block_size, num_blocks) in [
        (3, 3, 16, 100),
        (15, 15, 1, 60),
        (15, 17, 4, 15),
        (15, 2048, 2, 25),
    ] {
        let block_bytes = 2 * 8 * 4 * block_size;
        let settings = EngineSettings {
            max_batch_tokens,
            block_size,
            max_cache_bytes: Some((num_blocks * block_bytes) as u64),
            ..EngineSettings::new(max_agents)
        };
        let (episodes, stats) = play(&queries, settings);
        assert_eq!(episodes, expected);
        num_preemptions += stats.num_preemptions;
    }
    assert!(num_preemptions > 0);
}
