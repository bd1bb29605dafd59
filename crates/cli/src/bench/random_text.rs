//! Prompts of a known number of random tokens: a task, and a tokenizer with a word for every id.

use asyncthink_rollout::mix_seed;
use asyncthink_tasks::{
    ConfiguredTask, Error, Grade, Placeholders, Problem, ProblemSet, Task, TaskConfig, TaskProblem,
    schema_of,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Name of the task.
pub(crate) const NAME: &str = "random_text";

/// `tokenizer.json` of a vocabulary without tags, special tokens and ends of sequence: nothing ends an agent but its budget.
pub(crate) fn tokenizer_json(vocab_size: usize) -> Value {
    let vocab: serde_json::Map<String, Value> =
        (0..vocab_size).map(|id| (word(id), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": word(0) },
    })
}

fn word(id: usize) -> String {
    format!("w{id}")
}

/// Prompts of random words.
#[derive(Debug)]
pub(crate) struct RandomText;

/// Prompts of random words.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct RandomTextConfig {
    /// Prompts.
    num_prompts: usize,
    /// Words of each.
    prompt_tokens: usize,
    /// Different words.
    vocab_size: usize,
}

impl Task for RandomText {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "Random words, for benchmarks"
    }

    fn schema(&self) -> Value {
        schema_of::<RandomTextConfig>()
    }

    fn placeholders(&self) -> Placeholders {
        Placeholders {
            required: &["words"],
            optional: &[],
        }
    }

    fn configure(&self, config: &Value) -> Result<TaskConfig, Error> {
        let config: RandomTextConfig =
            serde_json::from_value(config.clone()).map_err(|error| Error::config(NAME, &error))?;
        let table = toml::Table::try_from(&config).map_err(|error| Error::config(NAME, &error))?;
        Ok(TaskConfig::new(Configured { config, table }))
    }

    fn read_problem(&self, json: &str) -> serde_json::Result<Problem> {
        serde_json::from_str::<RandomProblem>(json).map(Problem::new)
    }
}

#[derive(Debug)]
struct Configured {
    config: RandomTextConfig,
    table: toml::Table,
}

impl ConfiguredTask for Configured {
    fn task(&self) -> &dyn Task {
        &RandomText
    }

    fn config(&self) -> &toml::Table {
        &self.table
    }

    fn problems(&self, seed: u64) -> Result<ProblemSet, Error> {
        let RandomTextConfig {
            num_prompts,
            prompt_tokens,
            vocab_size,
        } = self.config;
        let word_at = |prompt: u64, place: u64| {
            let value = mix_seed(mix_seed(seed, prompt), place) % vocab_size as u64;
            word(usize::try_from(value).unwrap_or(0))
        };
        let problem = |prompt| {
            let words: Vec<String> = (0..prompt_tokens as u64)
                .map(|place| word_at(prompt, place))
                .collect();
            Problem::new(RandomProblem {
                words: words.join(" "),
            })
        };
        Ok(ProblemSet {
            train: (0..num_prompts as u64).map(problem).collect(),
            ..ProblemSet::default()
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct RandomProblem {
    words: String,
}

impl TaskProblem for RandomProblem {
    fn task_name(&self) -> &'static str {
        NAME
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("words", self.words.clone())]
    }

    fn grade(&self, _answer: &str) -> Grade {
        Grade::new(0, 1, Vec::new())
    }

    fn required(&self) -> usize {
        1
    }

    fn split_key(&self) -> String {
        self.words.clone()
    }

    fn vote_key(&self, _item: &str) -> Option<String> {
        None
    }

    fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}
