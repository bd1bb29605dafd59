//! Texts of organizer and workers for one problem.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use super::agent::{Agent, Solved, list};
use super::arithmetic::random_expr;
use crate::mcd::expr::Expr;
use crate::mcd::operator::Operator;
use crate::solver::{Move, ScriptStep, SolverSettings, WorkerScript};

/// Writes one script.
pub(super) struct Script<'a> {
    pub(super) solved: &'a Solved,
    pub(super) settings: &'a SolverSettings,
    pub(super) query: &'a str,
}

impl Script<'_> {
    /// Writes a script along the moves.
    pub(super) fn write(&self, moves: &[Move], rng: &mut dyn Rng) -> Vec<ScriptStep> {
        let is_persistent = rng.random_bool(self.settings.persistence_rate);
        let max_attempts = self.settings.max_attempts_organizer;
        let mut organizer = Agent::new(self.solved, self.settings, None);
        let mut returns: Vec<(u32, Vec<Expr>)> = Vec::new();
        let mut steps = Vec::new();
        // What a Join handed over is taken up in writing first thing after it.
        let mut taken_up = String::new();
        for next in moves {
            let num_attempts = rng.random_range(0..=max_attempts);
            let text = std::mem::take(&mut taken_up) + &organizer.attempts(num_attempts, rng);
            steps.push(ScriptStep::Think(text));
            match *next {
                Move::Fork(id) => {
                    let (step, returned) = self.fork(id, is_persistent, rng);
                    steps.push(step);
                    returns.push((id, returned));
                }
                Move::Join(id) => {
                    steps.push(ScriptStep::Join(id));
                    for (_, returned) in returns.extract_if(.., |(forked, _)| *forked == id) {
                        organizer.take_over(&returned);
                        if !returned.is_empty() {
                            taken_up = format!("have {}\n", organizer.known_list());
                        }
                    }
                }
            }
        }
        let last = if is_persistent {
            organizer.attempts_until(self.solved.problem.required, max_attempts, rng)
        } else {
            // One who neither forks nor tries has nothing to answer with.
            let min_attempts = usize::from(moves.is_empty());
            let num_attempts = rng.random_range(min_attempts..=max_attempts.max(min_attempts));
            organizer.attempts(num_attempts, rng)
        };
        steps.push(ScriptStep::Think(taken_up + &last));
        steps.push(ScriptStep::Answer(self.answer(&organizer, rng)));
        steps.retain(|step| !matches!(step, ScriptStep::Think(text) if text.is_empty()));
        steps
    }

    /// A Fork with all that its worker writes, and what that returns.
    fn fork(&self, id: u32, is_persistent: bool, rng: &mut dyn Rng) -> (ScriptStep, Vec<Expr>) {
        let focus = if rng.random_bool(self.settings.focus_rate) {
            Operator::ALL.choose(rng).copied()
        } else {
            None
        };
        let mut worker = Agent::new(self.solved, self.settings, focus);
        let max_attempts = self.settings.max_attempts_worker;
        let think = if is_persistent {
            worker.attempts_until(self.solved.problem.required, max_attempts, rng)
        } else {
            let num_attempts = rng.random_range(1..=max_attempts);
            worker.attempts(num_attempts, rng)
        };
        let mut returned = worker.known();
        if returned.is_empty() && rng.random_bool(self.settings.wrong_return_rate) {
            returned.extend(worker.tried.pop());
        }
        let sub_query = match focus {
            Some(operator) => format!("{} with {}", self.query, operator.symbol()),
            None => self.query.to_owned(),
        };
        let worker = WorkerScript {
            think,
            returned: list(&returned),
        };
        (
            ScriptStep::Fork {
                id,
                sub_query,
                worker,
            },
            returned,
        )
    }

    /// What was found and returned; or, in the scripts that leave it to learn, attempts whatever their value.
    fn answer(&self, organizer: &Agent<'_>, rng: &mut dyn Rng) -> String {
        let required = self.solved.problem.required;
        let is_verified = rng.random_bool(self.settings.correct_answer_rate);
        if is_verified && organizer.has_known() {
            return organizer.known_list();
        }
        let attempts: Vec<Expr> = organizer.tried.sample(rng, required).cloned().collect();
        if attempts.is_empty() {
            return random_expr(&self.solved.problem, None, rng).to_string();
        }
        list(&attempts)
    }
}
