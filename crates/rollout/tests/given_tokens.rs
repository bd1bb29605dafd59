//! Given tokens over the engine: they are what its next tokens follow, and episodes of them are those that were written.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::sync::Arc;

use asyncthink_data::{
    PromptTemplates, PromptText, TaskTokenizerConfig, TokenId, Tokenizer, task_tokenizer,
};
use asyncthink_engine::{
    AgentId, BatchedEngine, EngineSettings, Request, SamplingParams, Temperature,
};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes};
use asyncthink_protocol::{Capacity, Overflow, Protocol, TagStyle};
use asyncthink_rollout::{
    Agent, AgentBackend, AgentToken, EngineBackend, Prompt, Query, RolloutSettings,
    ScriptedBackend, WorkerEnd, rollout,
};
use tch::Device;

const WORDS: &str =
    " a b c main sub<FORK1></FORK1><JOIN1></JOIN1><RETURN></RETURN><ANSWER></ANSWER>";

fn decoder(vocab_size: usize) -> Decoder {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: i64::try_from(vocab_size).unwrap(),
        hidden_size: 16,
        intermediate_size: 24,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 8,
        rope_theta: 10_000.0,
        max_position_embeddings: 256,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap();
    Decoder::init(&config, Device::Cpu, 3).unwrap()
}

fn engine(decoder: &Decoder) -> BatchedEngine {
    BatchedEngine::new(decoder.config(), Device::Cpu, EngineSettings::new(4)).unwrap()
}

fn greedy() -> SamplingParams {
    SamplingParams::new(Temperature::new(0.0).unwrap())
}

fn request(agent: u64, prompt: Vec<TokenId>) -> Request {
    Request::new(AgentId(agent), prompt, agent).with_sampling(greedy())
}

/// The next tokens of the agents, a step at a time.
fn poll(backend: &mut dyn AgentBackend, num_steps: usize) -> Vec<AgentToken> {
    let steps = (0..num_steps).flat_map(|_| backend.poll().unwrap());
    steps.collect()
}

#[test]
fn after_the_script_come_the_tokens_that_follow_it() {
    let decoder = decoder(40);
    let prompt: Vec<TokenId> = (1..20).map(TokenId).collect();
    let script: Vec<TokenId> = (0..25).map(|n| TokenId(39 - n)).collect();

    let mut engine_of_script = engine(&decoder);
    let mut inner = EngineBackend::new(&mut engine_of_script, &decoder);
    let mut scripted = ScriptedBackend::new(&mut inner, |_, _| script.clone());
    scripted.start(request(1, prompt.clone())).unwrap();
    let played = poll(&mut scripted, script.len() + 6);
    let tokens: Vec<TokenId> = played.iter().map(|one| one.token).collect();
    assert_eq!(tokens[..script.len()], script);
    let has_logprob: Vec<bool> = played.iter().map(|one| one.logprob.is_some()).collect();
    assert!(has_logprob[..script.len()].iter().all(|has| !has));
    assert!(has_logprob[script.len()..].iter().all(|has| *has));

    let mut engine_of_whole = engine(&decoder);
    let mut whole = EngineBackend::new(&mut engine_of_whole, &decoder);
    whole
        .start(request(1, [prompt, script.clone()].concat()))
        .unwrap();
    let follow: Vec<TokenId> = poll(&mut whole, 6).iter().map(|one| one.token).collect();
    assert_eq!(tokens[script.len()..], follow);
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    tokenizer.encode(text).unwrap()
}

#[test]
fn an_episode_is_the_one_that_was_written() {
    let tokenizer = task_tokenizer([WORDS], &TaskTokenizerConfig::default()).unwrap();
    let decoder = decoder(tokenizer.vocab_size());
    let text = PromptText {
        organizer: " main {query}".into(),
        worker: " sub{sub_query}".into(),
        query: String::new(),
    };
    let templates = PromptTemplates::new(text, 1).unwrap();
    let settings = RolloutSettings {
        protocol: Protocol {
            tags: TagStyle::Plain,
            capacity: Capacity::new(2).unwrap(),
            overflow: Overflow::Error,
            max_forks: None,
        },
        worker_max_tokens: 100,
        organizer_max_tokens: 100,
        organizer_total_tokens: None,
        sampling: SamplingParams::default(),
    };
    let organizer = " a<FORK1> b</FORK1> a a<JOIN1> c<ANSWER> a</ANSWER><eos>";
    let worker = " c c c c<RETURN> b b</RETURN><eos>";
    let script_of = |query: usize, agent| {
        let script = match agent {
            Agent::Organizer => organizer,
            Agent::Worker(_) => worker,
        };
        assert!(query < 3);
        ids(&tokenizer, script)
    };
    let query = |index| Query {
        prompt: Arc::new(Prompt::new(&tokenizer, &templates, index, " a".into()).unwrap()),
        sample_index: 0,
        seed: index as u64,
    };
    let mut engine = engine(&decoder);
    let mut inner = EngineBackend::new(&mut engine, &decoder);
    let mut backend = ScriptedBackend::new(&mut inner, script_of);
    // More than decode at a time.
    let queries: Vec<Query> = (0..3).map(query).collect();
    let episodes = rollout(
        &mut backend,
        &tokenizer,
        &templates,
        &settings,
        &queries,
        &mut |_| true,
    )
    .unwrap();
    assert_eq!(episodes.len(), 3);
    for episode in &episodes {
        assert_eq!(episode.answer(), Some(" a"));
        assert_eq!(episode.organizer.decoded_ids(), ids(&tokenizer, organizer));
        assert_eq!(episode.workers[0].end, WorkerEnd::Returned(" b b".into()));
        let record = &episode.organizer;
        let written = tokenizer.decode(&record.ids()[record.prompt_tokens()..]);
        assert!(written.contains("<JOIN1> b b</JOIN1> c"), "{written}");
    }
}
