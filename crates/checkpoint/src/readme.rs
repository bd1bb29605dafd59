//! `README.md` of a checkpoint: its model card on the Hugging Face hub, and for whoever finds the folder.
//!
//! Everything in it follows from recipe, step and metrics, and nothing from a clock or a path of this machine, so that a
//! resumed run writes the same file.

use std::fmt::Write as _;
use std::path::{Component, Path};

use asyncthink_recipe::{ModelSection, RecipeData, Stage};
use fs_err as fs;
use serde_json::Value;

use crate::error::Result;
use crate::state::TrainerState;

const README_FILE: &str = "README.md";

/// Figures of `metrics.jsonl` worth a look, with what they are; a stage has those that its lines hold.
const FIGURES: [(&str, &str); 14] = [
    ("loss", "loss"),
    ("held_out_loss", "loss on held-out pairs, nats per token"),
    ("reward", "mean reward"),
    ("reward_accuracy", "mean accuracy"),
    ("all_correct", "share of episodes with everything right"),
    ("valid", "share of episodes without a format error"),
    ("eta_ratio", "mean concurrency eta/c"),
    ("latency_tokens", "mean latency, tokens"),
    ("forks_per_query", "Forks per episode"),
    ("decoded_tokens_per_query", "decoded tokens per episode"),
    ("entropy", "entropy of the policy, nats"),
    ("kl_reference", "KL to the stage's first model, nats"),
    ("grad_norm", "norm of the gradient before clipping"),
    ("learning_rate", "learning rate"),
];

/// What a run's model cards have in common.
#[derive(Clone, Debug)]
pub struct Readme {
    name: String,
    stage: Stage,
    num_steps: u64,
    /// The model that the recipe names, as the hub would; `None` for random weights.
    base_model: Option<String>,
}

/// What a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A whole model.
    Model,
    /// Adapters of the base model.
    Adapters,
}

impl Readme {
    /// The card of a stage of `recipe`.
    pub fn of(recipe: &RecipeData, stage: Stage, num_steps: u64) -> Self {
        let base_model = match &recipe.model {
            ModelSection::Path(dir) => hub_name(dir),
            ModelSection::Init(_) => None,
        };
        Self {
            name: line_of(&recipe.name),
            stage,
            num_steps,
            base_model,
        }
    }

    /// Writes the card of a checkpoint; `latest` is the newest line of the stage's metrics.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(
        &self,
        dir: &Path,
        state: &TrainerState,
        latest: Option<&Value>,
        contents: Contents,
    ) -> Result<()> {
        fs::write(dir.join(README_FILE), self.render(state, latest, contents))?;
        Ok(())
    }

    fn render(&self, state: &TrainerState, latest: Option<&Value>, contents: Contents) -> String {
        let parts = [
            self.front_matter(contents),
            self.introduction(state, contents),
            usage(contents),
            section("Rules and budgets", "", &settings(state, &["protocol."])),
            latest.map_or_else(String::new, figures),
            section(
                "Training",
                "The keys of the recipe that shape the result; prompts are in `asyncthink.json`.",
                &settings(
                    state,
                    &[
                        "seed",
                        "task.",
                        "model.",
                        &format!("{}.", self.stage.name()),
                    ],
                ),
            ),
        ];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("\n")
    }

    /// What the hub reads.
    fn front_matter(&self, contents: Contents) -> String {
        let (library, tag) = match contents {
            Contents::Model => ("transformers", ""),
            Contents::Adapters => ("peft", "- lora\n"),
        };
        let base_model = self.base_model.as_ref().map_or_else(String::new, |name| {
            // JSON's strings are YAML's as well.
            format!("base_model: {}\n", Value::from(name.as_str()))
        });
        format!(
            "---\nlibrary_name: {library}\npipeline_tag: text-generation\n{base_model}tags:\n- asyncthink\n{tag}---\n"
        )
    }

    fn introduction(&self, state: &TrainerState, contents: Contents) -> String {
        let stage = match self.stage {
            Stage::Grpo => "organizer-worker policy optimisation (`grpo`)".to_owned(),
            Stage::Sft => "cold-start format fine-tuning (`sft`)".to_owned(),
            other => format!("`{}`", other.name()),
        };
        let origin = match (&self.base_model, contents) {
            (Some(base), Contents::Model) => format!("trained from {}", code(base)),
            (Some(base), Contents::Adapters) => format!("adapters of {}", code(base)),
            (None, Contents::Model) => "trained from a model of its own".to_owned(),
            (None, Contents::Adapters) => "adapters".to_owned(),
        };
        format!(
            "# {}\n\nA language model that answers as an organizer with workers \
             ([AsyncThink, arXiv:2510.26658](https://arxiv.org/abs/2510.26658)): it hands sub-queries to workers, which are \
             the same model, goes on thinking while they run, and reads what they return.\n\n\
             Step {} of {} of {stage}, {origin}, written by asyncthink-train {}.\n",
            self.name,
            state.step,
            self.num_steps,
            env!("CARGO_PKG_VERSION")
        )
    }
}

fn usage(contents: Contents) -> String {
    let needs = match contents {
        Contents::Model => "",
        Contents::Adapters => ", with `peft` installed and the base model in its place",
    };
    format!(
        "## Use\n\nWith its workers, by the prompts and rules in `asyncthink.json`:\n\n\
         ```\nasyncthink-train think --model FOLDER \"QUERY\"\n```\n\n\
         As a plain model, which writes the organizer's part and runs no worker{needs}:\n\n\
         ```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         folder = \"FOLDER\"\n\
         tokenizer = AutoTokenizer.from_pretrained(folder)\n\
         model = AutoModelForCausalLM.from_pretrained(folder)\n```\n\n\
         The folder `trainer` is for going on with the training and may be left out.\n"
    )
}

/// The newest figures, in a table.
fn figures(line: &Value) -> String {
    let rows: Vec<(String, String)> = FIGURES
        .iter()
        .filter_map(|(key, meaning)| {
            let value = line.get(key)?.as_f64()?;
            Some(((*meaning).to_owned(), number(value)))
        })
        .collect();
    let step = line.get("step").and_then(Value::as_u64).unwrap_or_default();
    let source =
        "From `metrics.jsonl` of the run; `asyncthink-train eval` measures on held-out problems.";
    section(&format!("Figures of step {step}"), source, &rows)
}

/// The recipe's keys that begin with one of `prefixes`, with their values as TOML.
fn settings(state: &TrainerState, prefixes: &[&str]) -> Vec<(String, String)> {
    state
        .recipe
        .iter()
        .filter(|(key, _)| {
            // A path says nothing elsewhere; the base model is named above.
            key.as_str() != "model.path" && prefixes.iter().any(|prefix| key.starts_with(prefix))
        })
        .map(|(key, value)| (code(key), code(value)))
        .collect()
}

/// A headline with a sentence and a table; nothing without rows.
fn section(title: &str, sentence: &str, rows: &[(String, String)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("## {title}\n\n");
    // Writing to a string cannot fail.
    if !sentence.is_empty() {
        let _ = writeln!(text, "{sentence}\n");
    }
    text.push_str("| | |\n|---|---|\n");
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}

/// Text in a table's cell, as it is.
fn code(text: &str) -> String {
    let text = line_of(text).replace('|', "\\|").replace('`', "'");
    format!("`{text}`")
}

fn line_of(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A figure in a few digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 0.001 {
        format!("{value:.4}")
    } else {
        format!("{value:.2e}")
    }
}

/// How the hub would call the model in a folder: `owner/name` where the folder is one of the hub's own cache
/// (`models--owner--name/snapshots/...`), else the folder's name.
fn hub_name(dir: &Path) -> Option<String> {
    let names: Vec<&str> = dir
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let cached = names
        .iter()
        .find_map(|name| name.strip_prefix("models--"))
        .map(|name| name.replacen("--", "/", 1));
    cached.or_else(|| Some((*names.last()?).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> TrainerState {
        let recipe = [
            ("seed", "1"),
            ("task.mcd.train_file", "\"a|b\""),
            ("protocol.capacity", "2"),
            ("protocol.worker_max_tokens", "96"),
            ("prompts.organizer", "\"secret\""),
            ("sft.num_steps", "10"),
            ("sft.optimizer.learning_rate", "0.001"),
            ("model.path", "\"/home/me/models/base\""),
        ];
        TrainerState {
            stage: "sft".to_owned(),
            step: 4,
            num_updates: 4,
            metrics_bytes: 0,
            seed: 1,
            dataset: String::new(),
            initial_model: None,
            recipe: recipe
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            figures: std::collections::BTreeMap::new(),
            chosen: std::collections::BTreeMap::new(),
            best: None,
            stopped_early: false,
            run: String::new(),
        }
    }

    fn readme(base_model: Option<&str>) -> Readme {
        Readme {
            name: "tiny".to_owned(),
            stage: Stage::Sft,
            num_steps: 10,
            base_model: base_model.map(str::to_owned),
        }
    }

    #[test]
    fn a_card_says_what_the_model_is_and_how_to_use_it() {
        let line = serde_json::json!({
            "step": 3, "loss": 1.234_567, "held_out_loss": null, "learning_rate": 1e-5, "timing": {"step_seconds": 7.5},
        });
        let text = readme(Some("Qwen/Qwen3-4B")).render(&state(), Some(&line), Contents::Model);
        assert!(
            text.starts_with(
                "---\nlibrary_name: transformers\npipeline_tag: text-generation\nbase_model: \"Qwen/Qwen3-4B\"\ntags:\n\
                 - asyncthink\n---\n\n# tiny\n"
            ),
            "{text}"
        );
        for part in [
            "Step 4 of 10 of cold-start format fine-tuning (`sft`), trained from `Qwen/Qwen3-4B`",
            "asyncthink-train think --model FOLDER",
            "AutoModelForCausalLM.from_pretrained(folder)",
            "| `protocol.capacity` | `2` |",
            "| `protocol.worker_max_tokens` | `96` |",
            "## Figures of step 3\n",
            "| loss | 1.2346 |",
            "| learning rate | 1.00e-5 |",
            "| `sft.optimizer.learning_rate` | `0.001` |",
            "| `task.mcd.train_file` | `\"a\\|b\"` |",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        for part in ["7.5", "held-out pairs", "secret", "/home/me"] {
            assert!(!text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn a_card_needs_no_metrics_and_no_base_model() {
        let text = readme(None).render(&state(), None, Contents::Model);
        assert!(
            !text.contains("base_model") && !text.contains("Figures"),
            "{text}"
        );
        let text = readme(Some("base")).render(&state(), None, Contents::Adapters);
        assert!(text.contains("library_name: peft\n"), "{text}");
        assert!(text.contains("adapters of `base`"), "{text}");
    }

    #[test]
    fn a_base_model_has_the_name_that_the_hub_gives_it() {
        for (path, name) in [
            ("models/Qwen3-4B", Some("Qwen3-4B")),
            (
                "/cache/models--Qwen--Qwen3-0.6B/snapshots/c1899de2",
                Some("Qwen/Qwen3-0.6B"),
            ),
            ("../a--b/", Some("a--b")),
            ("..", None),
        ] {
            assert_eq!(hub_name(Path::new(path)).as_deref(), name, "{path}");
        }
    }
}
