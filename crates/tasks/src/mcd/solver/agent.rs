//! Attempts of one agent.

use rand::{Rng, RngExt};

use super::arithmetic::{in_fixed_order, last_operator, random_expr, value_text};
use crate::mcd::expr::Expr;
use crate::mcd::key::DifferenceKey;
use crate::mcd::operator::Operator;
use crate::mcd::problem::Problem;
use crate::mcd::solve::Solution;
use crate::numbers::pad_numbers;
use crate::solver::SolverSettings;

/// Separates the expressions of a return or an answer.
const SEPARATOR: &str = ";";

/// Blind draws per attempt; of those that come after the last attempt the nearest is taken.
const NUM_DRAWS: usize = 8;

/// Blind attempts are at most so many times the target, where the draws allow.
const MAX_OVERSHOOT: i64 = 3;

/// A problem with its solutions.
#[derive(Debug, Clone)]
pub(super) struct Solved {
    pub(super) problem: Problem,
    pub(super) solutions: Vec<Solution>,
}

/// Expressions as a return or an answer lists them.
pub(super) fn list(exprs: &[Expr]) -> String {
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
pub(super) struct Agent<'a> {
    solved: &'a Solved,
    hit_rate: f64,
    value_width: usize,
    focus: Option<Operator>,
    pub(super) tried: Vec<Expr>,
    /// Different solutions, found or returned. A wrong return is among them: the organizer cannot tell.
    known: Vec<Known>,
}

impl<'a> Agent<'a> {
    pub(super) fn new(
        solved: &'a Solved,
        settings: &SolverSettings,
        focus: Option<Operator>,
    ) -> Self {
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

    /// Puts the expressions that a worker returned before those that are known: a full return is then copied as it stands, and only a short one is
    /// completed. (Own finds first would have to be compared with every item of the return.)
    pub(super) fn take_over(&mut self, returned: &[Expr]) {
        let own = std::mem::take(&mut self.known);
        for expr in returned.iter().chain(own.iter().map(|known| &known.expr)) {
            self.learn(expr);
        }
    }

    /// Tells whether any solution is known.
    pub(super) fn has_known(&self) -> bool {
        !self.known.is_empty()
    }

    pub(super) fn known(&self) -> Vec<Expr> {
        self.known.iter().map(|known| known.expr.clone()).collect()
    }

    pub(super) fn known_list(&self) -> String {
        list(&self.known())
    }

    pub(super) fn attempts(&mut self, count: usize, rng: &mut dyn Rng) -> String {
        (0..count).map_while(|_| self.attempt(rng)).collect()
    }

    pub(super) fn attempts_until(
        &mut self,
        num_known: usize,
        max_count: usize,
        rng: &mut dyn Rng,
    ) -> String {
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
    fn attempt(&mut self, rng: &mut dyn Rng) -> Option<String> {
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

    /// The verdict on a wrong value. An order says more than a plain no: numbers that are compared with their neighbours get a
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
    fn next_expr(&self, rng: &mut dyn Rng) -> Option<Expr> {
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
            .map(|_| random_expr(&self.solved.problem, self.focus, rng))
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
