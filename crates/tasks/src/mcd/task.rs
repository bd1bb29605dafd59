//! Countdown as a [`Task`].

use std::path::Path;

use asyncthink_files::read_structured;
use serde_json::Value;

use super::attempts::attempts;
use super::config::{
    self, DEFAULT_TEST_TARGET_FRACTION, DEFAULT_VALIDATION_TARGET_FRACTION, McdConfig,
};
use super::generate::{self, GeneratorConfig};
use super::grade::grade;
use super::key::DifferenceKey;
use super::operator::Operator;
use super::problem::Problem;
use super::reading::Reading;
use super::rows::load_rows;
use super::solver::McdSolver;
use crate::config::{ConfigFault, ConfigView, schema_of};
use crate::error::Error;
use crate::grade::Grade;
use crate::problem::{Problem as AnyProblem, TaskProblem};
use crate::solver::Solver;
use crate::task::{
    ConfiguredTask, InputFile, Placeholders, ProblemCounts, ProblemSet, Split, Task, TaskConfig,
};

const NAME: &str = "mcd";

/// A line of a problem file, for error messages.
const LINE_FORM: &str =
    "`{\"target\": ..., \"available_numbers\": [...]}`; the released rows load as they are";

/// Multi-solution countdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct McdTask;

impl Task for McdTask {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "Multi-solution countdown"
    }

    fn schema(&self) -> Value {
        schema_of::<McdConfig>()
    }

    fn placeholders(&self) -> Placeholders {
        Placeholders {
            required: &["numbers", "target"],
            optional: &["required", "min_numbers", "max_numbers"],
        }
    }

    fn check(&self, config: &ConfigView<'_>) -> Vec<ConfigFault> {
        config::check(config)
    }

    fn problem_counts(&self, config: &ConfigView<'_>) -> ProblemCounts {
        config::problem_counts(config)
    }

    fn configure(&self, config: &Value) -> Result<TaskConfig, Error> {
        let config: McdConfig =
            serde_json::from_value(config.clone()).map_err(|error| Error::config(NAME, &error))?;
        ConfiguredMcd::new(config).map(TaskConfig::new)
    }

    fn read_problem(&self, json: &str) -> serde_json::Result<AnyProblem> {
        serde_json::from_str::<Problem>(json).map(AnyProblem::from)
    }

    fn solver(&self) -> Option<&dyn Solver> {
        Some(&McdSolver)
    }
}

/// Where the problems come from.
#[derive(Debug, Clone, PartialEq)]
enum Source {
    /// The generator; the seed is set for each call.
    Generator(GeneratorConfig),
    /// Files for training, test and perhaps validation.
    Files(Vec<InputFile>),
}

/// Countdown with the settings of a recipe.
#[derive(Debug)]
struct ConfiguredMcd {
    config: McdConfig,
    source: Source,
    table: toml::Table,
}

impl ConfiguredMcd {
    /// Writes the default of a generator's key back, so that the resolved recipe shows it.
    fn new(mut config: McdConfig) -> Result<Self, Error> {
        let files = [
            ("train_file", &config.train_file, Split::Train),
            (
                "validation_file",
                &config.validation_file,
                Split::Validation,
            ),
            ("test_file", &config.test_file, Split::Test),
        ];
        let source = if config.train_file.is_some() && config.test_file.is_some() {
            let given = files.into_iter().filter_map(|(key, path, split)| {
                let path = path.clone()?;
                Some(InputFile { key, path, split })
            });
            Source::Files(given.collect())
        } else {
            config
                .test_target_fraction
                .get_or_insert(DEFAULT_TEST_TARGET_FRACTION);
            if config.num_validation_problems.is_some() {
                config
                    .validation_target_fraction
                    .get_or_insert(DEFAULT_VALIDATION_TARGET_FRACTION);
            }
            let generator = generator(&config);
            Source::Generator(generator.ok_or_else(|| {
                Error::config(NAME, &"neither the generator nor two files are complete")
            })?)
        };
        let table = toml::Table::try_from(&config).map_err(|error| Error::config(NAME, &error))?;
        Ok(Self {
            config,
            source,
            table,
        })
    }

    fn read_file(&self, path: &Path) -> Result<Vec<AnyProblem>, Error> {
        let wrong = |source| Error::ProblemFile {
            path: path.to_path_buf(),
            line_form: LINE_FORM,
            source: Box::new(source),
        };
        let rows = load_rows(read_structured(path)?.as_bytes()).map_err(wrong)?;
        if rows.is_empty() {
            return Err(Error::NoProblems {
                path: path.to_path_buf(),
                line_form: LINE_FORM,
            });
        }
        let (required, rules) = (self.config.required_solutions, self.config.rules());
        rows.iter()
            .map(|row| {
                row.problem(required, rules)
                    .map(AnyProblem::from)
                    .map_err(wrong)
            })
            .collect()
    }
}

/// The generator's settings without a seed, if they are complete.
fn generator(config: &McdConfig) -> Option<GeneratorConfig> {
    Some(GeneratorConfig {
        num_numbers: config.num_numbers?,
        number_range: config.number_range?.into(),
        target_range: config.target_range?.into(),
        rules: config.rules(),
        required: config.required_solutions,
        num_train: config.num_train_problems?,
        num_validation: config.num_validation_problems.unwrap_or(0),
        num_test: config.num_test_problems?,
        validation_target_fraction: config
            .validation_target_fraction
            .unwrap_or(DEFAULT_VALIDATION_TARGET_FRACTION),
        test_target_fraction: config.test_target_fraction?,
        seed: 0,
    })
}

impl ConfiguredTask for ConfiguredMcd {
    fn task(&self) -> &dyn Task {
        &McdTask
    }

    fn config(&self) -> &toml::Table {
        &self.table
    }

    fn input_files(&self) -> Vec<InputFile> {
        match &self.source {
            Source::Generator(_) => Vec::new(),
            Source::Files(files) => files.clone(),
        }
    }

    fn problems(&self, seed: u64) -> Result<ProblemSet, Error> {
        match &self.source {
            Source::Generator(config) => {
                let set = generate::generate(&GeneratorConfig {
                    seed,
                    ..config.clone()
                })?;
                let hold = |problems: Vec<Problem>| problems.into_iter().map(AnyProblem::from);
                Ok(ProblemSet {
                    train: hold(set.train).collect(),
                    validation: hold(set.validation).collect(),
                    test: hold(set.test).collect(),
                })
            }
            Source::Files(files) => {
                let mut set = ProblemSet::default();
                for InputFile { path, split, .. } in files {
                    let problems = self.read_file(path)?;
                    match split {
                        Split::Train => set.train = problems,
                        Split::Validation => set.validation = problems,
                        Split::Test => set.test = problems,
                    }
                }
                Ok(set)
            }
        }
    }
}

fn key_text(key: &DifferenceKey) -> String {
    let operators = Operator::ALL.map(|operator| {
        let count = key.operators().count(operator);
        format!("{}{count}", operator.symbol())
    });
    format!("{:?} {}", key.numbers(), operators.join(" "))
}

impl From<Problem> for AnyProblem {
    fn from(problem: Problem) -> Self {
        Self::new(problem)
    }
}

impl TaskProblem for Problem {
    fn task_name(&self) -> &'static str {
        NAME
    }

    /// `numbers` (separated by one space), `target`, `required`, `min_numbers`, `max_numbers`.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let numbers: Vec<String> = self
            .available_numbers
            .iter()
            .map(ToString::to_string)
            .collect();
        vec![
            ("numbers", numbers.join(" ")),
            ("target", self.target.to_string()),
            ("required", self.required.to_string()),
            ("min_numbers", self.rules.min_numbers.to_string()),
            ("max_numbers", self.rules.max_numbers.to_string()),
        ]
    }

    fn grade(&self, answer: &str) -> Grade {
        grade(self, answer)
    }

    fn required(&self) -> usize {
        self.required
    }

    /// The target: none is both trained on and tested on.
    fn split_key(&self) -> String {
        self.target.to_string()
    }

    /// Numbers and operators of the expression, whatever its value.
    fn vote_key(&self, item: &str) -> Option<String> {
        Some(key_text(&DifferenceKey::of(
            &Reading::of(item).ok()?.solution,
        )))
    }

    fn attempts(&self, text: &str) -> Option<Vec<String>> {
        Some(attempts(text).iter().map(key_text).collect())
    }

    fn largest_number(&self) -> u64 {
        let largest = self.available_numbers.iter().copied().max().unwrap_or(0);
        u64::try_from(largest).unwrap_or(0)
    }

    /// The target, or a product of two numbers of the pool.
    fn largest_result(&self) -> u64 {
        let largest = self.largest_number();
        let target = u64::try_from(self.target).unwrap_or(0);
        largest.saturating_mul(largest).max(target)
    }

    fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}
