//! The solver: writes traces of countdown problems from their true solutions.
//!
//! # The text
//!
//! An attempt is a line: an expression, its value, and a verdict. One that hits the target is repeated after the verdict:
//!
//! ```text
//! 3+9=12 no
//! 3*5=15 ok 3*5
//! ```
//!
//! Copying is what small models learn last, so the text makes every copy easy. The repetition is a copy over a fixed distance,
//! and it puts each solution behind a marker (` ok `), as the runtime does with what a worker returns (`<JOIN1>`); returns and
//! answers then copy what follows markers. Operands stand in a fixed order, so that an attempt can be written in one way only.
//! A sub-query holds the whole problem, because a worker sees nothing else.
//!
//! # What is left to learn
//!
//! Traces are always legal, but not always good: agents stop after a number of attempts that does not depend on what they
//! found, answers may list attempts that missed, work between Fork and Join may be absent. The better behaviours occur in a
//! share of the traces that the recipe sets, so that policy optimisation has something to select.

mod agent;
mod arithmetic;
mod script;

use std::collections::{BTreeMap, BTreeSet};

use asyncthink_data::PromptTemplates;
use asyncthink_protocol::Protocol;
use asyncthink_recipe::{Catalogue, SynthSection};
use asyncthink_tasks::mcd::{self, SolveOptions, SubsetOrder, solve_with};
use asyncthink_tasks::{Problem, Task};
use rand::{Rng, RngExt};
use rayon::prelude::*;
use serde_json::Value;

use super::seam::{Draft, Lesson, Teacher, TeacherContext, TraceWriter};
use crate::error::{Error, Result};
use crate::seeds::{Stream, seed_of};
use agent::Solved;
use arithmetic::random_expr;
use script::Script;

/// Name in recipes and in the provenance of pairs.
const NAME: &str = "solver";

/// Text that holds every word the teacher may write, for the vocabulary.
const LEXICON: [&str; 5] = [
    "1+2=3 low\n1+2=3 high\n",
    "1/2=1/2 no\n",
    "1*2=2 ok 1*2;1+2\n",
    "have 1*2;1+2\n",
    "1 2 = 3 with *",
];

/// Problems solved between two calls of the progress function.
const SOLVE_CHUNK: usize = 256;

/// How often another target is drawn until one is allowed.
const MAX_TARGET_DRAWS: usize = 16;

/// How the solver is bounded per problem. Problems of few numbers are solved completely; of large ones a sample is enough.
const SOLVE: SolveOptions = SolveOptions {
    limit: 16,
    max_per_subset: 4,
    max_steps: 300_000,
    order: SubsetOrder::Shuffled { seed: 0 },
};

/// The teacher of countdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Solver;

impl Teacher for Solver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options_schema(&self) -> Value {
        Catalogue::no_options("A solver writes the traces. Its options are the keys of `[synth]`.")
    }

    fn can_teach(&self, task: &str) -> bool {
        task == mcd::McdTask.name()
    }

    fn vocabulary(&self) -> Vec<String> {
        LEXICON.map(str::to_owned).into()
    }

    fn open<'a>(&self, context: TeacherContext<'a>) -> Result<Box<dyn TraceWriter + 'a>> {
        Ok(Box::new(SolverWriter {
            section: context.section,
            protocol: context.protocol,
            templates: context.templates,
            held_out: context.held_out,
            seed: context.seed,
            solutions: BTreeMap::new(),
        }))
    }
}

/// Solves problems and writes their traces.
struct SolverWriter<'a> {
    section: &'a SynthSection,
    protocol: Protocol,
    templates: &'a PromptTemplates,
    held_out: &'a BTreeSet<String>,
    seed: u64,
    /// Solutions by the problem's index.
    solutions: BTreeMap<usize, Vec<mcd::Solution>>,
}

impl TraceWriter for SolverWriter<'_> {
    fn prepare(
        &mut self,
        problems: &[(usize, &Problem)],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let order = SubsetOrder::Shuffled {
            seed: seed_of(self.seed, Stream::Solver, 0),
        };
        let options = SolveOptions { order, ..SOLVE };
        for chunk in problems.chunks(SOLVE_CHUNK) {
            let solved = chunk.par_iter().map(|&(index, problem)| {
                let solutions = solve_with(as_countdown(problem)?, &options).solutions;
                Ok((index, solutions))
            });
            self.solutions.extend(solved.collect::<Result<Vec<_>>>()?);
            progress(self.solutions.len(), problems.len());
        }
        Ok(())
    }

    fn write(&self, lessons: &[Lesson<'_>]) -> Result<Vec<Result<Draft, String>>> {
        lessons
            .par_iter()
            .map(|lesson| self.write_one(lesson).map(Ok))
            .collect()
    }
}

impl SolverWriter<'_> {
    fn write_one(&self, lesson: &Lesson<'_>) -> Result<Draft> {
        let problem = as_countdown(lesson.problem)?;
        let mut rng = lesson.rng.clone();
        let other = if rng.random_bool(self.section.other_target_rate) {
            self.with_other_target(problem, &mut rng)
        } else {
            None
        };
        let known = self.solutions.get(&lesson.problem_index);
        let (problem, solutions) = match &other {
            Some((problem, solutions)) => (problem, solutions.as_slice()),
            None => (problem, known.map_or(&[][..], Vec::as_slice)),
        };
        let solved = Solved { problem, solutions };
        let script = Script::new(solved, self.section, self.protocol, self.templates);
        let text = script.write(&lesson.topology, &mut rng).render_unchecked();
        Ok(Draft {
            problem: match &other {
                Some((problem, _)) => Problem::from(problem.clone()),
                None => lesson.problem.clone(),
            },
            query: script.query,
            text,
        })
    }

    /// The same numbers with another target, and its solutions; `None` where no draw is allowed. The target is the value of
    /// an expression, or such a value with a digit exchanged.
    fn with_other_target(
        &self,
        problem: &mcd::Problem,
        rng: &mut impl Rng,
    ) -> Option<(mcd::Problem, Vec<mcd::Solution>)> {
        let target = (0..MAX_TARGET_DRAWS).find_map(|_| {
            let value = random_expr(problem, None, rng).evaluate().ok()?.parts();
            let mut target = i64::try_from(value.0).ok().filter(|_| value.1 == 1)?;
            if rng.random_bool(self.section.near_target_rate) {
                target = with_other_digit(target, rng);
            }
            let is_allowed = target > 0 && !self.held_out.contains(&target.to_string());
            is_allowed.then_some(target)
        })?;
        let problem = mcd::Problem {
            target,
            ..problem.clone()
        };
        let order = SubsetOrder::Shuffled { seed: rng.random() };
        let solutions = solve_with(&problem, &SolveOptions { order, ..SOLVE }).solutions;
        Some((problem, solutions))
    }
}

/// The problem as one that this teacher can solve.
fn as_countdown(problem: &Problem) -> Result<&mcd::Problem> {
    problem
        .downcast_ref::<mcd::Problem>()
        .ok_or_else(|| Error::TaskNotTaught {
            teacher: NAME.to_owned(),
            task: problem.task_name().to_owned(),
        })
}

/// The number with its last or last but one digit drawn anew.
fn with_other_digit(number: i64, rng: &mut impl Rng) -> i64 {
    let place = if rng.random_bool(0.5) { 10 } else { 1 };
    number + (rng.random_range(0..10) - number / place % 10) * place
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds::generator;

    #[test]
    fn one_of_the_last_two_digits_is_drawn_anew() {
        let mut rng = generator(1);
        let drawn: BTreeSet<i64> = (0..500).map(|_| with_other_digit(147, &mut rng)).collect();
        let expected: BTreeSet<i64> = (0..10)
            .flat_map(|digit| [140 + digit, 107 + 10 * digit])
            .collect();
        assert_eq!(drawn, expected);
    }
}
