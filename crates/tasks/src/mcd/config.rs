//! `[task.mcd]` of a recipe.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Rules;
use crate::config::{ConfigFault, ConfigView};
use crate::task::{ProblemCount, ProblemCounts};

/// Most problems, which are all in memory.
const MAX_PROBLEMS: u32 = 10_000_000;

/// Largest number or target, either sign: products of all numbers on offer stay far from overflow.
const MAX_NUMBER: i64 = 1_000_000_000;

/// Share of the targets kept for evaluation where the recipe does not say.
pub(super) const DEFAULT_TEST_TARGET_FRACTION: f64 = 0.1;

/// Share of the targets kept for validation where the recipe does not say.
pub(super) const DEFAULT_VALIDATION_TARGET_FRACTION: f64 = 0.1;

/// Keys of the problem generator that may be absent.
const OPTIONAL_GENERATOR_KEYS: [&str; 3] = [
    "test_target_fraction",
    "num_validation_problems",
    "validation_target_fraction",
];

/// Keys that the problem generator needs.
const GENERATOR_KEYS: [&str; 5] = [
    "num_numbers",
    "number_range",
    "target_range",
    "num_train_problems",
    "num_test_problems",
];

/// Multi-solution countdown. From some of the given numbers and
/// `+ - * /`, find several different expressions that equal the target.
/// Either give the generator's keys (`num_numbers`, `number_range`,
/// `target_range`, `num_train_problems`, `num_test_problems`) or two
/// files (`train_file`, `test_file`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct McdConfig {
    /// How many different solutions an answer needs for the full reward.
    /// Default 4, as in the paper.
    #[serde(default = "required_solutions")]
    #[schemars(range(min = 1, max = 16))]
    pub(super) required_solutions: usize,
    /// Fewest and most numbers that one solution may use, both included.
    /// Default [3, 6], as in the paper.
    #[serde(default = "numbers_per_solution")]
    #[schemars(inner(range(max = 64)))]
    pub(super) numbers_per_solution: [usize; 2],
    /// How many numbers a generated problem offers. The paper's problems have
    /// 12; fewer make a smaller search.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 24))]
    pub(super) num_numbers: Option<usize>,
    /// Smallest and largest number on offer, both included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = -MAX_NUMBER, max = MAX_NUMBER)))]
    pub(super) number_range: Option<[i64; 2]>,
    /// Smallest and largest target, both included. Targets are split between
    /// training and test, so that test targets are never seen in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = -MAX_NUMBER, max = MAX_NUMBER)))]
    pub(super) target_range: Option<[i64; 2]>,
    /// Problems to generate for training.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PROBLEMS))]
    pub(super) num_train_problems: Option<usize>,
    /// Problems to generate for choosing settings by, which
    /// `eval.split = "validation"` measures on. Absent means none. Their
    /// targets are taken from those for training.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PROBLEMS))]
    pub(super) num_validation_problems: Option<usize>,
    /// Share of the targets kept for validation. Default 0.1, where there are
    /// validation problems.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub(super) validation_target_fraction: Option<f64>,
    /// Problems to generate for evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PROBLEMS))]
    pub(super) num_test_problems: Option<usize>,
    /// Share of the targets kept for evaluation. Default 0.1: enough targets
    /// to measure on, most left to learn from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub(super) test_target_fraction: Option<f64>,
    /// Training problems as JSON lines with `target`, `available_numbers` and
    /// optionally `index` and `solutions`: the released rows load as they
    /// are. Relative to the folder that the command runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) train_file: Option<PathBuf>,
    /// Problems to choose settings by, in the same form as `train_file`.
    /// Absent means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) validation_file: Option<PathBuf>,
    /// Evaluation problems, in the same form as `train_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) test_file: Option<PathBuf>,
}

const fn required_solutions() -> usize {
    4
}

const fn numbers_per_solution() -> [usize; 2] {
    [3, 6]
}

impl McdConfig {
    /// What a solution must obey besides reaching the target.
    pub(super) fn rules(&self) -> Rules {
        let [min_numbers, max_numbers] = self.numbers_per_solution;
        Rules {
            min_numbers,
            max_numbers,
        }
    }
}

/// All contradictions of a section.
pub(super) fn check(config: &ConfigView<'_>) -> Vec<ConfigFault> {
    let mut faults = Vec::new();
    check_source(config, &mut faults);
    check_order(config, &mut faults);
    check_pool(config, &mut faults);
    faults
}

/// The problems that the generator is asked for. A section without `num_numbers` is reported as incomplete, and says nothing.
pub(super) fn problem_counts(config: &ConfigView<'_>) -> ProblemCounts {
    let count = |key| {
        config.number("num_numbers")?;
        let count = config.number(key)?;
        Some(ProblemCount { key, count })
    };
    ProblemCounts {
        train: count("num_train_problems"),
        validation: validation_count(config),
        test: count("num_test_problems"),
    }
}

fn validation_count(config: &ConfigView<'_>) -> Option<ProblemCount> {
    let (key, count) = if config.has("train_file") {
        // How many a file holds is known when it is read.
        ("validation_file", None)
    } else {
        let key = "num_validation_problems";
        (key, config.number(key))
    };
    if !config.has(key) {
        return Some(ProblemCount { key, count: 0.0 });
    }
    count.map(|count| ProblemCount { key, count })
}

/// Problems come from the generator or from two files.
fn check_source(config: &ConfigView<'_>, faults: &mut Vec<ConfigFault>) {
    let files = ["train_file", "test_file"];
    if !files.iter().any(|key| config.has(key)) {
        if config.has("validation_file") {
            faults.push(ConfigFault::conflict(
                "validation_file",
                "the problems come from the generator, so the file has no effect",
                "set `num_validation_problems`, or give `train_file` and `test_file` too",
            ));
        }
        if config.has("validation_target_fraction") && !config.has("num_validation_problems") {
            faults.push(ConfigFault::conflict(
                "validation_target_fraction",
                "has no effect without `num_validation_problems`",
                "add `num_validation_problems`, or remove it",
            ));
        }
        let absent = GENERATOR_KEYS.into_iter().filter(|key| !config.has(key));
        faults.extend(absent.map(|key| {
            ConfigFault::missing(
                key,
                "missing key: the problem generator needs it",
                "add it, or give `train_file` and `test_file`",
            )
        }));
        return;
    }
    let absent = files.into_iter().filter(|key| !config.has(key));
    faults.extend(absent.map(|key| {
        ConfigFault::missing(
            key,
            "missing key: training and test problems come from two files",
            "add it; the released rows have one file for each",
        )
    }));
    let idle = GENERATOR_KEYS.into_iter().chain(OPTIONAL_GENERATOR_KEYS);
    faults.extend(idle.filter(|key| config.has(key)).map(|key| {
        ConfigFault::conflict(
            key,
            "the problems come from files, so the generator's keys have no effect",
            "remove it, or remove `train_file` and `test_file`",
        )
    }));
}

/// Ranges ascend.
fn check_order(config: &ConfigView<'_>, faults: &mut Vec<ConfigFault>) {
    for key in ["numbers_per_solution", "number_range", "target_range"] {
        if let Some((low, high)) = config.pair(key)
            && low > high
        {
            faults.push(ConfigFault::conflict(
                key,
                "the smallest value comes after the largest",
                format!("write `{key} = [{high}, {low}]`"),
            ));
        }
    }
    if let Some((low, _)) = config.pair("numbers_per_solution")
        && low < 2
    {
        faults.push(ConfigFault::conflict(
            "numbers_per_solution",
            "a solution needs at least two numbers",
            "start from 2",
        ));
    }
}

/// The pool holds enough numbers.
fn check_pool(config: &ConfigView<'_>, faults: &mut Vec<ConfigFault>) {
    let Some(num_numbers) = config.number("num_numbers") else {
        return;
    };
    if let Some((low, high)) = config.pair("numbers_per_solution")
        && low <= high
        && high as f64 > num_numbers
    {
        faults.push(ConfigFault::conflict(
            "numbers_per_solution",
            format!("a solution cannot use more than the {num_numbers} numbers on offer"),
            "lower it, or raise `num_numbers`",
        ));
    }
    if let Some((low, high)) = config.pair("number_range")
        && low <= high
        && (high.saturating_sub(low).saturating_add(1) as f64) < num_numbers
    {
        faults.push(ConfigFault::conflict(
            "number_range",
            format!("holds fewer than {num_numbers} different numbers"),
            "widen it, or lower `num_numbers`",
        ));
    }
}
