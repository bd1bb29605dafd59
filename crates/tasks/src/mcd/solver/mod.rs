//! The solver of countdown: writes what agents try, from true solutions.
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
//! Scripts are always legal, but not always good: agents stop after a number of attempts that does not depend on what they
//! found, answers may list attempts that missed, work between Fork and Join may be absent. The better behaviours occur in a
//! share of the scripts that the settings say, so that policy optimisation has something to select.

mod agent;
mod arithmetic;
mod script;

use std::collections::BTreeSet;

use rand::{Rng, RngExt};

use self::agent::Solved;
use self::arithmetic::random_expr;
use self::script::Script;
use super::problem::Problem;
use super::solve::{SolveOptions, SubsetOrder, solve_with};
use crate::problem::Problem as AnyProblem;
use crate::solver::{Move, ScriptStep, SolvedProblem, Solver, SolverSettings};

/// Text that holds every word the solver may write, for the vocabulary.
const LEXICON: [&str; 5] = [
    "1+2=3 low\n1+2=3 high\n",
    "1/2=1/2 no\n",
    "1*2=2 ok 1*2;1+2\n",
    "have 1*2;1+2\n",
    "1 2 = 3 with *",
];

/// How often another target is drawn until one is allowed.
const MAX_TARGET_DRAWS: usize = 16;

/// How the solver is bounded per problem. Problems of few numbers are solved completely; of large ones a sample is enough.
const SOLVE: SolveOptions = SolveOptions {
    limit: 16,
    max_per_subset: 4,
    max_steps: 300_000,
    order: SubsetOrder::Shuffled { seed: 0 },
};

/// The solver of countdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct McdSolver;

impl Solver for McdSolver {
    fn vocabulary(&self) -> Vec<String> {
        LEXICON.map(str::to_owned).into()
    }

    fn solve(&self, problem: &AnyProblem, seed: u64) -> Option<Box<dyn SolvedProblem>> {
        let problem = problem.downcast_ref::<Problem>()?;
        Some(Box::new(solved(problem.clone(), seed)))
    }
}

impl SolvedProblem for Solved {
    fn problem(&self) -> AnyProblem {
        AnyProblem::from(self.problem.clone())
    }

    /// The same numbers with another target. The target is the value of an expression, or such a value with a digit
    /// exchanged.
    fn variant(
        &self,
        settings: &SolverSettings,
        held_out: &BTreeSet<String>,
        rng: &mut dyn Rng,
    ) -> Option<Box<dyn SolvedProblem>> {
        if !rng.random_bool(settings.other_target_rate) {
            return None;
        }
        let target = (0..MAX_TARGET_DRAWS).find_map(|_| {
            let value = random_expr(&self.problem, None, rng)
                .evaluate()
                .ok()?
                .parts();
            let mut target = i64::try_from(value.0).ok().filter(|_| value.1 == 1)?;
            if rng.random_bool(settings.near_target_rate) {
                target = with_other_digit(target, rng);
            }
            let is_allowed = target > 0 && !held_out.contains(&target.to_string());
            is_allowed.then_some(target)
        })?;
        let problem = Problem {
            target,
            ..self.problem.clone()
        };
        Some(Box::new(solved(problem, rng.random())))
    }

    fn write(
        &self,
        query: &str,
        moves: &[Move],
        settings: &SolverSettings,
        rng: &mut dyn Rng,
    ) -> Vec<ScriptStep> {
        Script {
            solved: self,
            settings,
            query,
        }
        .write(moves, rng)
    }
}

/// Solves a problem; the seed orders the search.
fn solved(problem: Problem, seed: u64) -> Solved {
    let order = SubsetOrder::Shuffled { seed };
    let solutions = solve_with(&problem, &SolveOptions { order, ..SOLVE }).solutions;
    Solved { problem, solutions }
}

/// The number with its last or last but one digit drawn anew.
fn with_other_digit(number: i64, rng: &mut dyn Rng) -> i64 {
    let place = if rng.random_bool(0.5) { 10 } else { 1 };
    number + (rng.random_range(0..10) - number / place % 10) * place
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::mcd::Rules;

    #[test]
    fn one_of_the_last_two_digits_is_drawn_anew() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let drawn: BTreeSet<i64> = (0..500).map(|_| with_other_digit(147, &mut rng)).collect();
        let expected: BTreeSet<i64> = (0..10)
            .flat_map(|digit| [140 + digit, 107 + 10 * digit])
            .collect();
        assert_eq!(drawn, expected);
    }

    fn settings() -> SolverSettings {
        SolverSettings {
            max_attempts_organizer: 4,
            max_attempts_worker: 4,
            hit_rate: 0.5,
            correct_answer_rate: 0.5,
            persistence_rate: 0.5,
            wrong_return_rate: 0.5,
            focus_rate: 0.5,
            other_target_rate: 1.0,
            near_target_rate: 0.5,
            value_width: 0,
        }
    }

    #[test]
    fn scripts_follow_the_moves_and_ask_for_nothing_held_out() {
        let rules = Rules {
            min_numbers: 2,
            max_numbers: 2,
        };
        let problem = Problem::new(15, vec![3, 5, 7, 8], 2, rules).unwrap();
        let solved = McdSolver.solve(&AnyProblem::from(problem), 1).unwrap();
        let held_out = BTreeSet::from(["8".to_owned(), "15".to_owned(), "56".to_owned()]);
        let moves = [Move::Fork(1), Move::Fork(2), Move::Join(2), Move::Join(1)];
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            if let Some(variant) = solved.variant(&settings(), &held_out, &mut rng) {
                assert!(!held_out.contains(&variant.problem().split_key()));
            }
            let steps = solved.write("the query", &moves, &settings(), &mut rng);
            let mut found = Vec::new();
            for step in &steps {
                match step {
                    ScriptStep::Fork { id, sub_query, .. } => {
                        assert!(sub_query.starts_with("the query"), "{sub_query}");
                        found.push(Move::Fork(*id));
                    }
                    ScriptStep::Join(id) => found.push(Move::Join(*id)),
                    ScriptStep::Think(text) => assert!(!text.is_empty()),
                    ScriptStep::Answer(_) => {}
                }
            }
            assert_eq!(found, moves);
            assert!(matches!(steps.last(), Some(ScriptStep::Answer(_))));
        }
    }
}
