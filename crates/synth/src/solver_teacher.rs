//! The teacher: writes what organizer and workers decode for one problem.

use asyncthink_data::{PromptTemplates, pad_numbers};
use asyncthink_protocol::{Protocol, RETURN_CLOSE, RETURN_OPEN, Step, SubQueryId, TraceBuilder};
use asyncthink_recipe::SynthSection;
use asyncthink_tasks::mcd::{DifferenceKey, Expr, Operator, Problem, Solution};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use crate::arithmetic::{in_fixed_order, last_operator, random_expr, value_text};
use crate::topology::Event;

/// The name of this teacher in provenance.
pub(crate) const TEACHER: &str = "solver";

/// Separates the expressions of a return or an answer.
const SEPARATOR: &str = ";";

/// Blind draws per attempt; of those that come after the last attempt the nearest is taken.
const NUM_DRAWS: usize = 8;

/// Blind attempts are at most so many times the target, where the draws allow.
const MAX_OVERSHOOT: i64 = 3;

/// Text that holds every word the teacher may write, for the vocabulary.
pub(crate) const LEXICON: [&str; 5] = [
    "1+2=3 low\n1+2=3 high\n",
    "1/2=1/2 no\n",
    "1*2=2 ok 1*2;1+2\n",
    "have 1*2;1+2\n",
    "1 2 = 3 with *",
];

/// A problem with what the teacher knows about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Solved<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) solutions: &'a [Solution],
}

/// What a trace is written by.
pub(crate) struct Lesson<'a> {
    pub(crate) solved: Solved<'a>,
    pub(crate) settings: &'a SynthSection,
    pub(crate) protocol: Protocol,
    pub(crate) query: String,
}

impl<'a> Lesson<'a> {
    pub(crate) fn new(
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
    pub(crate) fn write(&self, topology: &[Event], rng: &mut impl Rng) -> TraceBuilder {
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
        if is_verified && !organizer.known.is_empty() {
            return organizer.known_list();
        }
        let attempts: Vec<Expr> = organizer.tried.sample(rng, required).cloned().collect();
        if attempts.is_empty() {
            return random_expr(self.solved.problem, None, rng).to_string();
        }
        list(&attempts)
    }
}

fn list(exprs: &[Expr]) -> String {
    exprs
        .iter()
        .map(Expr::to_string)
        .collect::<Vec<_>>()
        .join(SEPARATOR)
}

struct Known {
    expr: Expr,
    key: DifferenceKey,
}

/// One agent's attempts and knowledge.
struct Agent<'a> {
    solved: Solved<'a>,
    hit_rate: f64,
    value_width: usize,
    focus: Option<Operator>,
    tried: Vec<Expr>,
    /// Different solutions, found or returned. A wrong return is among them: the organizer cannot tell.
    known: Vec<Known>,
}

impl<'a> Agent<'a> {
    fn new(solved: Solved<'a>, settings: &SynthSection, focus: Option<Operator>) -> Self {
        Self {
            solved,
            hit_rate: settings.hit_rate,
            value_width: settings.value_width,
            focus,
            tried: Vec::new(),
            known: Vec::new(),
        }
    }

    /// Remembers a solution that differs from those known, until there are as many as asked for.
    fn learn(&mut self, expr: &Expr) {
        let key = DifferenceKey::of(expr);
        let is_new = self.known.iter().all(|known| known.key != key);
        if is_new && self.known.len() < self.solved.problem.required {
            self.known.push(Known {
                expr: expr.clone(),
                key,
            });
        }
    }

    /// Puts what a worker returned before what is known: a full return is then copied as it stands, and only a short one is
    /// completed. (Own finds first would have to be compared with every item of the return.)
    fn take_over(&mut self, returned: &[Expr]) {
        let own = std::mem::take(&mut self.known);
        for expr in returned.iter().chain(own.iter().map(|known| &known.expr)) {
            self.learn(expr);
        }
    }

    fn known(&self) -> Vec<Expr> {
        self.known.iter().map(|known| known.expr.clone()).collect()
    }

    fn known_list(&self) -> String {
        list(&self.known())
    }

    fn attempts(&mut self, count: usize, rng: &mut impl Rng) -> String {
        (0..count).map_while(|_| self.attempt(rng)).collect()
    }

    fn attempts_until(&mut self, num_known: usize, max_count: usize, rng: &mut impl Rng) -> String {
        let mut text = String::new();
        for _ in 0..max_count {
            if self.known.len() >= num_known {
                break;
            }
            let Some(line) = self.attempt(rng) else {
                break;
            };
            text.push_str(&line);
        }
        text
    }

    /// One line; `None` when there is nothing left to try. After a hit stands all that is known: whoever ends copies the
    /// last such list, and need not look for the pieces.
    fn attempt(&mut self, rng: &mut impl Rng) -> Option<String> {
        let expr = self.next_expr(rng)?;
        let (value, is_hit) = value_text(&expr, self.solved.problem.target);
        let written = pad_numbers(&value, self.value_width);
        let line = if is_hit {
            self.learn(&expr);
            format!("{expr}={written} ok {}\n", self.known_list())
        } else {
            format!("{expr}={written} {}\n", self.miss(&value))
        };
        self.tried.push(expr);
        Some(line)
    }

    /// How a wrong value misses. An order says more than a plain no: numbers that are compared with their neighbours get a
    /// place among them, which carries over to targets that training never shows.
    fn miss(&self, value: &str) -> &'static str {
        match value.parse::<i64>() {
            Ok(value) if value < self.solved.problem.target => "low",
            Ok(_) => "high",
            Err(_) => "no",
        }
    }

    /// The next expression, in the order of [`rank`]: an agent that only moves on never repeats itself, and needs to look at nothing
    /// but its last line for that.
    fn next_expr(&self, rng: &mut impl Rng) -> Option<Expr> {
        let last = self.tried.last().map(rank);
        let is_ahead = |expr: &Expr| last.as_ref().is_none_or(|last| rank(expr) > *last);
        if rng.random_bool(self.hit_rate) {
            let is_wanted = |solution: &&Solution| {
                let is_known = self.known.iter().any(|known| known.key == solution.key);
                !is_known
                    && self
                        .focus
                        .is_none_or(|focus| last_operator(&solution.expr) == Some(focus))
            };
            let solutions = self.solved.solutions.iter().filter(is_wanted);
            let hit = solutions
                .map(|solution| in_fixed_order(&solution.expr))
                .filter(is_ahead)
                .min_by_key(rank);
            if hit.is_some() {
                return hit;
            }
        }
        let draws: Vec<Expr> = (0..NUM_DRAWS)
            .map(|_| random_expr(self.solved.problem, self.focus, rng))
            .filter(is_ahead)
            .collect();
        let near = draws.iter().filter(|expr| self.is_near(expr));
        near.min_by_key(|expr| rank(expr))
            .or_else(|| draws.iter().min_by_key(|expr| rank(expr)))
            .cloned()
    }

    /// Whether a value is near enough to the target to be worth a try: large products are seen to be far off.
    fn is_near(&self, expr: &Expr) -> bool {
        let bound = self.solved.problem.target.saturating_mul(MAX_OVERSHOOT);
        expr.evaluate()
            .is_ok_and(|value| value.parts().0 <= i128::from(bound))
    }
}

/// The order in which expressions are tried: by the operator applied last, then by the numbers.
fn rank(expr: &Expr) -> (Option<Operator>, Vec<i64>) {
    let mut numbers = expr.numbers();
    numbers.sort_unstable();
    (last_operator(expr), numbers)
}
