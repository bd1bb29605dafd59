//! Where the problems come from: the generator, or two files.

use std::collections::BTreeSet;
use std::io::BufReader;
use std::path::Path;

use asyncthink_recipe::{McdSection, McdSource, Recipe, TaskSection};
use asyncthink_tasks::{Problem, mcd};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::seeds::{Stream, seed_of};
use crate::trace::as_mcd;
use crate::{Error, Result};

/// Problems to learn from and problems to measure on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemSet {
    /// Training problems.
    pub train: Vec<Problem>,
    /// Held-out problems.
    pub test: Vec<Problem>,
}

/// The problems of a recipe; the same recipe gives the same problems.
///
/// # Errors
/// The generator finds too few problems, or a file cannot be read or holds none.
pub fn problem_set(recipe: &Recipe) -> Result<ProblemSet> {
    let TaskSection::Mcd(section) = &recipe.task;
    let rules = rules(section);
    match &section.source {
        McdSource::Generate(generate) => {
            let set = mcd::generate(&mcd::GeneratorConfig {
                num_numbers: generate.num_numbers,
                number_range: generate.number_range.into(),
                target_range: generate.target_range.into(),
                rules,
                required: section.required_solutions,
                num_train: generate.num_train_problems,
                num_test: generate.num_test_problems,
                test_target_fraction: generate.test_target_fraction,
                seed: seed_of(recipe.seed, Stream::Problems, 0),
            })?;
            let wrap =
                |problems: Vec<mcd::Problem>| problems.into_iter().map(Problem::Mcd).collect();
            Ok(ProblemSet {
                train: wrap(set.train),
                test: wrap(set.test),
            })
        }
        McdSource::Files {
            train_file,
            test_file,
        } => {
            let set = ProblemSet {
                train: read_file(train_file, section.required_solutions, rules)?,
                test: read_file(test_file, section.required_solutions, rules)?,
            };
            let per_step = recipe.grpo.as_ref().map(|grpo| grpo.prompts_per_step);
            let measured = recipe.eval.as_ref().and_then(|eval| eval.num_problems);
            for (key, wanted, found, path) in [
                (
                    "grpo.prompts_per_step",
                    per_step,
                    set.train.len(),
                    train_file,
                ),
                ("eval.num_problems", measured, set.test.len(), test_file),
            ] {
                if let Some(wanted) = wanted.filter(|&wanted| wanted > found) {
                    let path = path.clone();
                    return Err(Error::TooFewProblems {
                        key,
                        wanted,
                        found,
                        path,
                    });
                }
            }
            Ok(set)
        }
    }
}

impl ProblemSet {
    /// The targets of the test problems.
    pub fn held_out_targets(&self) -> BTreeSet<i64> {
        as_mcds(&self.test).map(|problem| problem.target).collect()
    }

    /// Test problems whose target a training problem has too: none of generated ones, any number of given ones.
    pub fn num_seen_targets(&self) -> usize {
        let targets = |problems| as_mcds(problems).map(|problem| problem.target);
        let seen: BTreeSet<i64> = targets(&self.train).collect();
        targets(&self.test)
            .filter(|target| seen.contains(target))
            .count()
    }
}

fn as_mcds(problems: &[Problem]) -> impl Iterator<Item = &mcd::Problem> {
    problems.iter().filter_map(as_mcd)
}

fn read_file(path: &Path, required: usize, rules: mcd::Rules) -> Result<Vec<Problem>> {
    let wrong = |source| Error::ProblemFile {
        path: path.to_path_buf(),
        source,
    };
    let rows = mcd::load_rows(BufReader::new(fs::File::open(path)?)).map_err(wrong)?;
    if rows.is_empty() {
        return Err(Error::NoProblems {
            path: path.to_path_buf(),
        });
    }
    rows.iter()
        .map(|row| {
            row.problem(required, rules)
                .map(Problem::Mcd)
                .map_err(wrong)
        })
        .collect()
}

fn rules(section: &McdSection) -> mcd::Rules {
    let [min_numbers, max_numbers] = section.numbers_per_solution;
    mcd::Rules {
        min_numbers,
        max_numbers,
    }
}
