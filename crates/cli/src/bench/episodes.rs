//! Organizer-worker episodes with given tokens, played by the real driver.

use std::sync::Arc;

use asyncthink_data::{
    PromptTemplates, PromptText, TaskTokenizerConfig, TokenId, Tokenizer, task_tokenizer,
};
use asyncthink_engine::SamplingParams;
use asyncthink_protocol::{Capacity, Overflow, Protocol, SubQueryId, TagStyle};
use asyncthink_recipe::BenchRolloutSection;
use asyncthink_rollout::{
    Agent, AgentBackend, Episode, Prompt, Query, RolloutSettings, ScriptedBackend, mix_seed,
    rollout,
};

use super::plain::Prompts;
use crate::failure::Failure;

/// A token of thought.
const THOUGHT: &str = " so";

/// Digits of a sub-query's number, one token each: eight words, so that it has a number of base eight.
const DIGITS: [&str; 8] = [" a", " b", " c", " d", " e", " f", " g", " h"];

/// Spelling of the tags.
const TAGS: TagStyle = TagStyle::Plain;

/// Agents and tokens of the episodes of a workload.
pub(crate) struct Episodes<'a> {
    bench: &'a BenchRolloutSection,
    num_forks: usize,
    tokenizer: Tokenizer,
    templates: PromptTemplates,
    settings: RolloutSettings,
}

impl<'a> Episodes<'a> {
    /// Makes tokenizer, prompts and rules.
    ///
    /// # Errors
    /// When the model's vocabulary is smaller than the tokens that an episode needs.
    pub(crate) fn new(
        bench: &'a BenchRolloutSection,
        capacity: Capacity,
        sampling: SamplingParams,
        vocab_size: i64,
    ) -> Result<Self, Failure> {
        let num_forks = bench.forks(capacity);
        let tokenizer =
            task_tokenizer([words(num_forks).as_str()], &TaskTokenizerConfig::default())?;
        if i64::try_from(tokenizer.vocab_size()).unwrap_or(i64::MAX) > vocab_size {
            let message = format!(
                "episodes of {num_forks} Forks take {} different tokens, and the model's vocabulary has {vocab_size}",
                tokenizer.vocab_size()
            );
            return Err(Failure::input(message)
                .hint("raise `model.init.vocab_size`, or lower `bench.rollout.num_forks`"));
        }
        let head = THOUGHT.repeat(bench.prompt_tokens - BenchRolloutSection::SUB_QUERY_TOKENS);
        let worker = if bench.share_prompts {
            format!("{head}{{sub_query}}")
        } else {
            format!("{{sub_query}}{head}")
        };
        let text = PromptText {
            organizer: "{query}".to_owned(),
            worker,
            query: String::new(),
        };
        // Nothing but the scripts ends an agent.
        let limit = 2 * bench.new_tokens;
        Ok(Self {
            bench,
            num_forks,
            tokenizer,
            templates: PromptTemplates::new(text, capacity.max_workers())?,
            settings: RolloutSettings {
                protocol: Protocol {
                    tags: TAGS,
                    capacity,
                    overflow: Overflow::Error,
                    max_forks: None,
                },
                worker_max_tokens: limit,
                organizer_max_tokens: limit,
                organizer_total_tokens: None,
                sampling,
            },
        })
    }

    /// Runs all episodes of a repeat, in which each agent decodes at most `new_tokens` tokens.
    ///
    /// # Errors
    /// When decoding fails.
    pub(crate) fn run(
        &self,
        backend: &mut dyn AgentBackend,
        prompts: &Prompts<'_>,
    ) -> Result<Vec<Episode>, Failure> {
        let queries: Vec<Query> = (0..self.bench.num_prompts)
            .flat_map(|index| self.group(prompts, index))
            .collect();
        let mut played = ScriptedBackend::new(backend, |episode, agent| match agent {
            Agent::Organizer => self.organizer(episode),
            Agent::Worker(_) => self.worker(),
        });
        let episodes = rollout(
            &mut played,
            &self.tokenizer,
            &self.templates,
            &self.settings,
            &queries,
            &mut |_| true,
        )?;
        Ok(episodes)
    }

    fn group(&self, prompts: &Prompts<'_>, index: usize) -> Vec<Query> {
        let prompt = |sample| {
            Arc::new(Prompt {
                index,
                query: String::new(),
                ids: prompts.ids(index, sample),
            })
        };
        let shared = prompt(0);
        let samples = 0..self.bench.group_size;
        samples
            .map(|sample_index| Query {
                prompt: if self.bench.share_prompts {
                    Arc::clone(&shared)
                } else {
                    prompt(sample_index)
                },
                sample_index,
                seed: mix_seed(
                    prompts.seed,
                    (index * self.bench.group_size + sample_index) as u64,
                ),
            })
            .collect()
    }

    /// Forks as many workers as the pool has room for, joins the oldest before each further Fork and all at the end, and thinks
    /// after every Fork and Join.
    fn organizer(&self, episode: usize) -> Vec<TokenId> {
        let in_parallel =
            usize::try_from(self.settings.protocol.capacity.max_workers()).unwrap_or(usize::MAX);
        let fixed = BenchRolloutSection::organizer_tokens(self.num_forks);
        let thoughts = self.bench.new_tokens - fixed;
        let num_pauses = 2 * self.num_forks;
        let mut pauses = 0;
        let mut script = Vec::new();
        let mut think = |script: &mut Vec<TokenId>| {
            // Whole numbers of thoughts that add up.
            let (before, after) = (
                thoughts * pauses / num_pauses,
                thoughts * (pauses + 1) / num_pauses,
            );
            pauses += 1;
            script.extend(std::iter::repeat_n(self.token(THOUGHT), after - before));
        };
        let join = |script: &mut Vec<TokenId>, fork: usize| {
            script.push(self.token(&TAGS.join_open(sub_query_id(fork))));
        };
        for fork in 0..self.num_forks {
            if let Some(oldest) = fork.checked_sub(in_parallel) {
                join(&mut script, oldest);
                think(&mut script);
            }
            script.push(self.token(&TAGS.fork_open(sub_query_id(fork))));
            script.extend(self.sub_query(episode * self.num_forks + fork));
            script.push(self.token(&TAGS.fork_close(sub_query_id(fork))));
            think(&mut script);
        }
        for fork in self.num_forks.saturating_sub(in_parallel)..self.num_forks {
            join(&mut script, fork);
            think(&mut script);
        }
        script.extend(["<ANSWER>", THOUGHT, "</ANSWER>"].map(|text| self.token(text)));
        script.extend(self.tokenizer.eos_id());
        script
    }

    /// Thinks, returns and ends its sequence.
    fn worker(&self) -> Vec<TokenId> {
        let return_tokens = self.bench.return_tokens;
        let thoughts = self.bench.new_tokens - BenchRolloutSection::worker_tokens(return_tokens);
        let thought = self.token(THOUGHT);
        let mut script = vec![thought; thoughts];
        script.push(self.token("<RETURN>"));
        script.extend(std::iter::repeat_n(thought, return_tokens));
        script.push(self.token("</RETURN>"));
        script.extend(self.tokenizer.eos_id());
        script
    }

    /// A number in words, so that no two sub-queries are the same.
    fn sub_query(&self, number: usize) -> impl Iterator<Item = TokenId> {
        (0..BenchRolloutSection::SUB_QUERY_TOKENS)
            .map(move |place| self.token(DIGITS[(number >> (3 * place)) & 7]))
    }

    fn token(&self, text: &str) -> TokenId {
        self.tokenizer.token_id(text).unwrap_or(TokenId(0))
    }
}

fn sub_query_id(fork: usize) -> SubQueryId {
    SubQueryId(u32::try_from(fork + 1).unwrap_or(u32::MAX))
}

/// All words of an episode.
fn words(num_forks: usize) -> String {
    let tags = (0..num_forks).flat_map(|fork| {
        let id = sub_query_id(fork);
        [
            TAGS.fork_open(id),
            TAGS.fork_close(id),
            TAGS.join_open(id),
            TAGS.join_close(id),
        ]
    });
    let tags: String = tags.collect();
    format!(
        "{THOUGHT}{}{tags}<ANSWER></ANSWER><RETURN></RETURN>",
        DIGITS.concat()
    )
}
