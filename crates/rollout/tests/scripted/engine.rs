//! An engine that plays written scripts, and what the tests ask of it.

use std::collections::BTreeMap;

use asyncthink_data::{PromptTemplates, PromptText, TokenId, Tokenizer, task_tokenizer};
use asyncthink_engine::{AgentId, Engine, Error, Request, Result, Sampled};
use asyncthink_protocol::{Capacity, Overflow, Protocol, TagStyle};
use asyncthink_rollout::{Query, RolloutSettings};

const WORDS: &str = " a b c main sub ask one two <FORK1> </FORK1> <FORK2> </FORK2> <FORK3> </FORK3> <JOIN1> </JOIN1> \
    <JOIN2> </JOIN2> <JOIN3> </JOIN3> <RETURN> </RETURN> <ANSWER> </ANSWER>";

pub(crate) fn tokenizer() -> Tokenizer {
    task_tokenizer([WORDS], &asyncthink_data::TaskTokenizerConfig::default()).unwrap()
}

pub(crate) fn templates() -> PromptTemplates {
    let text = PromptText {
        organizer: "main {query}".into(),
        worker: "sub {sub_query}".into(),
        query: "ask".into(),
    };
    PromptTemplates::new(text, 2).unwrap()
}

pub(crate) fn settings(capacity: u32, overflow: Overflow) -> RolloutSettings {
    RolloutSettings {
        protocol: Protocol {
            tags: TagStyle::Plain,
            capacity: Capacity::new(capacity).unwrap(),
            overflow,
            max_forks: None,
        },
        worker_max_tokens: 40,
        organizer_max_tokens: 60,
        organizer_total_tokens: Some(200),
    }
}

/// Plays, for each organizer and for each worker by its prompt, a fixed list of ids; then ends of sequence for ever.
pub(crate) struct ScriptedEngine<'a> {
    tokenizer: &'a Tokenizer,
    /// Text to decode by the text of the prompt.
    scripts: BTreeMap<String, String>,
    slots: usize,
    pub(crate) max_sequence_tokens: usize,
    pub(crate) agents: BTreeMap<AgentId, Playing>,
    pub(crate) max_held: usize,
}

pub(crate) struct Playing {
    script: Vec<TokenId>,
    next: usize,
    running: bool,
    given: Vec<TokenId>,
}

impl<'a> ScriptedEngine<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, slots: usize, scripts: &[(&str, &str)]) -> Self {
        let scripts = scripts
            .iter()
            .map(|(prompt, text)| ((*prompt).to_owned(), (*text).to_owned()))
            .collect();
        Self {
            tokenizer,
            scripts,
            slots,
            max_sequence_tokens: 500,
            agents: BTreeMap::new(),
            max_held: 0,
        }
    }
}

impl Engine for ScriptedEngine<'_> {
    fn add(&mut self, request: Request) -> Result<()> {
        assert!(
            self.agents.len() < self.slots,
            "the driver must never overfill the engine"
        );
        let prompt = self.tokenizer.decode(&request.prompt);
        let script = self
            .scripts
            .get(&prompt)
            .unwrap_or_else(|| panic!("no script for `{prompt}`"));
        let script = self.tokenizer.encode(script).unwrap();
        let playing = Playing {
            script,
            next: 0,
            running: true,
            given: Vec::new(),
        };
        assert!(self.agents.insert(request.agent, playing).is_none());
        self.max_held = self.max_held.max(self.agents.len());
        Ok(())
    }

    fn extend(&mut self, agent: AgentId, ids: &[TokenId]) -> Result<()> {
        let playing = self
            .agents
            .get_mut(&agent)
            .ok_or(Error::UnknownAgent(agent))?;
        playing.given.extend_from_slice(ids);
        playing.running = true;
        Ok(())
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.agents
            .get_mut(&agent)
            .ok_or(Error::UnknownAgent(agent))?
            .running = false;
        Ok(())
    }

    fn remove(&mut self, agent: AgentId) -> Result<()> {
        self.agents
            .remove(&agent)
            .map(|_| ())
            .ok_or(Error::UnknownAgent(agent))
    }

    fn step(&mut self) -> Result<Vec<Sampled>> {
        let eos = self.tokenizer.eos_ids()[0];
        let running = self
            .agents
            .iter_mut()
            .filter(|(_, playing)| playing.running);
        Ok(running
            .map(|(&agent, playing)| {
                let token = playing.script.get(playing.next).copied().unwrap_or(eos);
                playing.next += 1;
                Sampled {
                    agent,
                    token,
                    logprob: -(playing.next as f32),
                }
            })
            .collect())
    }

    fn num_free(&self) -> usize {
        self.slots - self.agents.len()
    }

    fn max_sequence_tokens(&self) -> usize {
        self.max_sequence_tokens
    }
}

pub(crate) fn query(index: usize) -> Query {
    Query {
        prompt_index: index,
        sample_index: 0,
        text: format!("{index}"),
        seed: index as u64,
    }
}
