//! The problems of the run, and their form between ranks.

use std::collections::BTreeSet;

use asyncthink_recipe::EvalSplit;
use asyncthink_tasks::{Problem, ProblemSet, Split, Task};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::seeds::{Stream, seed_of};
use crate::settings::ColdstartSettings;

/// Generates or reads the problems; the same settings give the same problems.
///
/// # Errors
/// The generator finds too few problems, a file cannot be read, or there are fewer problems than a stage uses.
pub fn problem_set(settings: &ColdstartSettings) -> Result<ProblemSet> {
    let seed = seed_of(settings.seed, Stream::Problems, 0);
    let set = settings.task.problems(seed)?;
    let needs = [
        (
            "grpo.prompts_per_step",
            settings.min_train_problems,
            set.train.len(),
            Split::Train,
        ),
        (
            "eval.num_problems",
            settings.min_eval_problems,
            match settings.eval_split {
                EvalSplit::Validation => set.validation.len(),
                EvalSplit::Test => set.test.len(),
            },
            match settings.eval_split {
                EvalSplit::Validation => Split::Validation,
                EvalSplit::Test => Split::Test,
            },
        ),
    ];
    for (key, wanted, found, split) in needs {
        if let Some(wanted) = wanted.filter(|&wanted| wanted > found) {
            return Err(Error::TooFewProblems {
                key,
                wanted,
                found,
                origin: origin(settings, split),
            });
        }
    }
    Ok(set)
}

/// The file that a split comes from, or the task.
fn origin(settings: &ColdstartSettings, split: Split) -> String {
    let files = settings.task.input_files();
    match files.iter().find(|file| file.split == split) {
        Some(file) => format!("`{}`", file.path.display()),
        None => format!("`[task.{}]`", settings.task.task().name()),
    }
}

/// Split keys of the problems that traces must not show: those for validation and for testing.
pub(crate) fn held_out_keys(set: &ProblemSet) -> BTreeSet<String> {
    let held_out = set.validation.iter().chain(&set.test);
    held_out.map(Problem::split_key).collect()
}

/// Number of test problems whose split key a training or validation problem has too: none of generated ones, any number of
/// given ones.
pub(crate) fn num_seen(set: &ProblemSet) -> usize {
    let others = set.train.iter().chain(&set.validation);
    let seen: BTreeSet<String> = others.map(Problem::split_key).collect();
    let test = set.test.iter().map(Problem::split_key);
    test.filter(|key| seen.contains(key)).count()
}

/// Problems as JSON, which ranks exchange.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProblemTexts {
    train: Vec<String>,
    validation: Vec<String>,
    test: Vec<String>,
}

impl ProblemTexts {
    pub(crate) fn of(set: &ProblemSet) -> Result<Self> {
        let texts = |problems: &[Problem]| problems.iter().map(Problem::to_json).collect();
        let json = |result: serde_json::Result<Vec<String>>| {
            result.map_err(|error| Error::Exchange(error.into()))
        };
        Ok(Self {
            train: json(texts(&set.train))?,
            validation: json(texts(&set.validation))?,
            test: json(texts(&set.test))?,
        })
    }

    /// Reads the problems of the first rank.
    pub(crate) fn read(&self, task: &dyn Task) -> Result<ProblemSet> {
        let read = |texts: &[String]| {
            let problems = texts.iter().map(|text| task.read_problem(text));
            let problems: serde_json::Result<Vec<Problem>> = problems.collect();
            problems.map_err(|error| Error::invalid_message(0, error.to_string()))
        };
        Ok(ProblemSet {
            train: read(&self.train)?,
            validation: read(&self.validation)?,
            test: read(&self.test)?,
        })
    }
}
