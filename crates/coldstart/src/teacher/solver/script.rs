//! Writes the text of organizer and workers for one problem.

use asyncthink_data::PromptTemplates;
use asyncthink_protocol::{Protocol, RETURN_CLOSE, RETURN_OPEN, Step, SubQueryId, TraceBuilder};
use asyncthink_recipe::SynthSection;
use asyncthink_tasks::TaskProblem;
use asyncthink_tasks::mcd::{Expr, Operator};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use super::agent::{Agent, Solved, list};
use super::arithmetic::random_expr;
use crate::topology::Event;

/// Writes one trace.
pub(super) struct Script<'a> {
    pub(super) solved: Solved<'a>,
    pub(super) settings: &'a SynthSection,
    pub(super) protocol: Protocol,
    pub(super) query: String,
}

impl<'a> Script<'a> {
    pub(super) fn new(
        solved: Solved<'a>,
        settings: &'a SynthSection,
        protocol: Protocol,
        templates: &PromptTemplates,
    ) -> Self {
        let query = templates.query(&solved.problem.fields());
        Self {
            solved,
            settings,
            protocol,
            query,
        }
    }

    /// Writes a trace along a topology.
    pub(super) fn write(&self, topology: &[Event], rng: &mut impl Rng) -> TraceBuilder {
        let is_persistent = rng.random_bool(self.settings.persistence_rate);
        let max_attempts = self.settings.max_attempts_organizer;
        let mut organizer = Agent::new(self.solved, self.settings, None);
        let mut returns: Vec<(SubQueryId, Vec<Expr>)> = Vec::new();
        let mut steps = Vec::new();
        // What a Join handed over is taken up in writing first thing after it.
        let mut taken_up = String::new();
        for event in topology {
            let num_attempts = rng.random_range(0..=max_attempts);
            let text = std::mem::take(&mut taken_up) + &organizer.attempts(num_attempts, rng);
            steps.push(Step::Think(text));
            match *event {
                Event::Fork(id) => {
                    let (step, returned) = self.fork(id, is_persistent, rng);
                    steps.push(step);
                    returns.push((id, returned));
                }
                Event::Join(id) => {
                    steps.push(Step::Join(id));
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
            let min_attempts = usize::from(topology.is_empty());
            let num_attempts = rng.random_range(min_attempts..=max_attempts.max(min_attempts));
            organizer.attempts(num_attempts, rng)
        };
        steps.push(Step::Think(taken_up + &last));
        steps.push(Step::Answer(self.answer(&organizer, rng)));
        steps.retain(|step| !matches!(step, Step::Think(text) if text.is_empty()));
        TraceBuilder::from_steps(self.protocol, steps)
    }

    /// A Fork with all that its worker writes, and what that returns.
    fn fork(&self, id: SubQueryId, is_persistent: bool, rng: &mut impl Rng) -> (Step, Vec<Expr>) {
        let focus = if rng.random_bool(self.settings.focus_rate) {
            Operator::ALL.choose(rng).copied()
        } else {
            None
        };
        let mut worker = Agent::new(self.solved, self.settings, focus);
        let max_attempts = self.settings.max_attempts_worker;
        let mut text = if is_persistent {
            worker.attempts_until(self.solved.problem.required, max_attempts, rng)
        } else {
            let num_attempts = rng.random_range(1..=max_attempts);
            worker.attempts(num_attempts, rng)
        };
        let mut returned = worker.known();
        if returned.is_empty() && rng.random_bool(self.settings.wrong_return_rate) {
            returned.extend(worker.tried.pop());
        }
        text.push_str(RETURN_OPEN);
        text.push_str(&list(&returned));
        text.push_str(RETURN_CLOSE);
        let sub_query = match focus {
            Some(operator) => format!("{} with {}", self.query, operator.symbol()),
            None => self.query.clone(),
        };
        (
            Step::Fork {
                id,
                sub_query,
                worker_text: text,
            },
            returned,
        )
    }

    /// What was found and returned; or, in the traces that leave it to learn, attempts whatever their value.
    fn answer(&self, organizer: &Agent<'_>, rng: &mut impl Rng) -> String {
        let required = self.solved.problem.required;
        let is_verified = rng.random_bool(self.settings.correct_answer_rate);
        if is_verified && organizer.has_known() {
            return organizer.known_list();
        }
        let attempts: Vec<Expr> = organizer.tried.sample(rng, required).cloned().collect();
        if attempts.is_empty() {
            return random_expr(self.solved.problem, None, rng).to_string();
        }
        list(&attempts)
    }
}
