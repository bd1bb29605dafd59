//! A task of its own: the answer must repeat a word.

use asyncthink_tasks::{
    ConfiguredTask, Error, Grade, Item, Placeholders, Problem, ProblemSet, Reason, Task,
    TaskConfig, TaskProblem, schema_of,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug)]
pub(crate) struct Echo;

/// Repeats a word.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct EchoConfig {
    /// Problems to train on.
    #[schemars(range(min = 1, max = 1000))]
    num_words: usize,
    /// Beginning of every word. Default `word`.
    #[serde(default = "word")]
    prefix: String,
}

fn word() -> String {
    "word".to_owned()
}

impl Task for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn title(&self) -> &'static str {
        "Repeats a word"
    }

    fn schema(&self) -> Value {
        schema_of::<EchoConfig>()
    }

    fn placeholders(&self) -> Placeholders {
        Placeholders {
            required: &["word"],
            optional: &[],
        }
    }

    fn configure(&self, config: &Value) -> Result<TaskConfig, Error> {
        let config: EchoConfig = serde_json::from_value(config.clone())
            .map_err(|error| Error::config("echo", &error))?;
        let table =
            toml::Table::try_from(&config).map_err(|error| Error::config("echo", &error))?;
        Ok(TaskConfig::new(ConfiguredEcho { config, table }))
    }

    fn read_problem(&self, json: &str) -> serde_json::Result<Problem> {
        serde_json::from_str::<EchoProblem>(json).map(Problem::new)
    }
}

#[derive(Debug)]
struct ConfiguredEcho {
    config: EchoConfig,
    table: toml::Table,
}

impl ConfiguredTask for ConfiguredEcho {
    fn task(&self) -> &dyn Task {
        &Echo
    }

    fn config(&self) -> &toml::Table {
        &self.table
    }

    fn problems(&self, seed: u64) -> Result<ProblemSet, Error> {
        let problem = |split: &str, index: usize| {
            Problem::new(EchoProblem {
                word: format!("{}{}{split}{index}", self.config.prefix, seed % 10),
            })
        };
        let count = self.config.num_words;
        Ok(ProblemSet {
            train: (0..count).map(|index| problem("a", index)).collect(),
            test: (0..count).map(|index| problem("b", index)).collect(),
            ..ProblemSet::default()
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct EchoProblem {
    word: String,
}

impl TaskProblem for EchoProblem {
    fn task_name(&self) -> &'static str {
        "echo"
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("word", self.word.clone())]
    }

    fn grade(&self, answer: &str) -> Grade {
        let ok = answer.trim() == self.word;
        let item = Item {
            text: answer.chars().take(64).collect(),
            ok,
            reason: (!ok).then_some(Reason::new("wrong_value")),
        };
        Grade::new(usize::from(ok), 1, vec![item])
    }

    fn required(&self) -> usize {
        1
    }

    fn split_key(&self) -> String {
        self.word.clone()
    }

    fn vote_key(&self, item: &str) -> Option<String> {
        Some(item.trim().to_owned())
    }

    fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}
