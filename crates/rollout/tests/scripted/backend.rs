//! A backend that plays written scripts, and what the tests ask of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use asyncthink_data::{PromptTemplates, PromptText, TokenId, Tokenizer, task_tokenizer};
use asyncthink_engine::{AgentId, Error as EngineError, Request, SamplingParams};
use asyncthink_protocol::{Capacity, Overflow, Protocol, TagStyle};
use asyncthink_rollout::{
    AgentBackend, AgentToken, Prompt, Query, Result, RolloutSettings, mix_seed,
};

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
        sampling: SamplingParams::default(),
    }
}

/// Plays, for each organizer and for each worker by its prompt, a fixed list of ids; then ends of sequence for ever.
pub(crate) struct ScriptedBackend<'a> {
    tokenizer: &'a Tokenizer,
    /// Text to decode by the text of the prompt.
    scripts: BTreeMap<String, String>,
    slots: usize,
    pub(crate) max_sequence_tokens: usize,
    pub(crate) agents: BTreeMap<AgentId, Playing>,
    pub(crate) max_held: usize,
    pub(crate) num_polls: u64,
    /// Tokens that each agent was expected to decode, in the order of their start.
    pub(crate) expected_tokens: Vec<usize>,
    delivery: Delivery,
}

/// How many tokens of which agents come together.
pub(crate) enum Delivery {
    /// One of every running agent.
    LockStep,
    /// Some of one running agent, drawn from this seed.
    Bursts(u64),
}

pub(crate) struct Playing {
    script: Vec<TokenId>,
    /// Tokens delivered.
    next: usize,
    running: bool,
    /// Tokens of the context that were not decoded: the prompt and what was injected.
    num_given: usize,
}

impl Playing {
    fn deliver(&mut self, agent: AgentId, eos: TokenId) -> AgentToken {
        let token = self.script.get(self.next).copied().unwrap_or(eos);
        self.next += 1;
        AgentToken {
            agent,
            token,
            logprob: Some(-(self.next as f32)),
        }
    }
}

impl<'a> ScriptedBackend<'a> {
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
            num_polls: 0,
            expected_tokens: Vec::new(),
            delivery: Delivery::LockStep,
        }
    }

    pub(crate) fn with_delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    fn playing(&mut self, agent: AgentId) -> Result<&mut Playing> {
        let playing = self.agents.get_mut(&agent);
        Ok(playing.ok_or(EngineError::UnknownAgent(agent))?)
    }
}

impl AgentBackend for ScriptedBackend<'_> {
    fn start(&mut self, request: Request) -> Result<()> {
        assert!(
            self.agents.len() < self.slots,
            "the driver must never overfill the backend"
        );
        let prompt = self.tokenizer.decode(&request.prompt);
        let script = self
            .scripts
            .get(&prompt)
            .unwrap_or_else(|| panic!("no script for `{prompt}`"));
        self.expected_tokens.push(request.expected_tokens);
        let last = request.prompt.last().copied();
        let script = self.tokenizer.encode_continuation(script, last).unwrap();
        let playing = Playing {
            script,
            next: 0,
            running: true,
            num_given: request.prompt.len(),
        };
        assert!(self.agents.insert(request.agent, playing).is_none());
        self.max_held = self.max_held.max(self.agents.len());
        Ok(())
    }

    fn inject(&mut self, agent: AgentId, keep_tokens: usize, ids: &[TokenId]) -> Result<()> {
        let playing = self.playing(agent)?;
        let num_decoded = keep_tokens - playing.num_given;
        assert!(
            num_decoded <= playing.next,
            "only delivered tokens are kept"
        );
        playing.next = num_decoded;
        playing.num_given += ids.len();
        playing.running = true;
        Ok(())
    }

    fn pause(&mut self, agent: AgentId) -> Result<()> {
        self.playing(agent)?.running = false;
        Ok(())
    }

    fn cancel(&mut self, agent: AgentId) -> Result<()> {
        self.playing(agent)?;
        self.agents.remove(&agent);
        Ok(())
    }

    fn poll(&mut self) -> Result<Vec<AgentToken>> {
        self.num_polls += 1;
        let eos = self.tokenizer.eos_ids()[0];
        let mut running: Vec<_> = self
            .agents
            .iter_mut()
            .filter(|(_, playing)| playing.running)
            .collect();
        let Delivery::Bursts(seed) = self.delivery else {
            let tokens = running.into_iter();
            return Ok(tokens.map(|(&id, one)| one.deliver(id, eos)).collect());
        };
        let draw = mix_seed(seed, self.num_polls);
        let index = usize::try_from(draw % running.len() as u64).unwrap();
        let (&id, playing) = running.swap_remove(index);
        Ok((0..=(draw >> 32) % 7)
            .map(|_| playing.deliver(id, eos))
            .collect())
    }

    fn num_free(&self) -> usize {
        self.slots - self.agents.len()
    }

    fn max_sequence_tokens(&self) -> usize {
        self.max_sequence_tokens
    }
}

pub(crate) fn query(tokenizer: &Tokenizer, index: usize) -> Query {
    query_of(tokenizer, &templates(), index, &index.to_string()).unwrap()
}

pub(crate) fn query_of(
    tokenizer: &Tokenizer,
    templates: &PromptTemplates,
    index: usize,
    text: &str,
) -> Result<Query> {
    Ok(Query {
        prompt: Arc::new(Prompt::new(tokenizer, templates, index, text.to_owned())?),
        sample_index: 0,
        seed: index as u64,
    })
}
