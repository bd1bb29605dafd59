//! The seam of solvers: cold-start work that a task writes from true solutions.
//!
//! A solver writes texts alone. Tags, templates and checks belong to whoever asks for the work.

use std::collections::BTreeSet;
use std::fmt::Debug;

use rand::Rng;

use crate::problem::Problem;

/// Settings of a solver; rates are probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct SolverSettings {
    /// Most attempts that the organizer writes between two of its moves.
    pub max_attempts_organizer: usize,
    /// Most attempts that a worker writes.
    pub max_attempts_worker: usize,
    /// Share of the attempts that are drawn from the true solutions.
    pub hit_rate: f64,
    /// Share of the scripts whose answer lists what was found and returned.
    pub correct_answer_rate: f64,
    /// Share of the scripts whose agents go on until they have found enough.
    pub persistence_rate: f64,
    /// Share of the workers without a find that return an attempt that missed.
    pub wrong_return_rate: f64,
    /// Share of the sub-queries that narrow the search.
    pub focus_rate: f64,
    /// Share of the scripts that ask for another target than their problem.
    pub other_target_rate: f64,
    /// Share of those targets that are moved off the value they were drawn from.
    pub near_target_rate: f64,
    /// Digits to which computed values are padded; 0 for none.
    pub value_width: usize,
}

/// An action of the organizer that a script must hold; workers go by numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Hands a sub-query to a new worker.
    Fork(u32),
    /// Waits for what a worker returns.
    Join(u32),
}

/// Work of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerScript {
    /// Text before the return.
    pub think: String,
    /// Text that the organizer gets.
    pub returned: String,
}

/// A step of the organizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptStep {
    /// Writes text.
    Think(String),
    /// Hands a sub-query to a worker.
    Fork {
        /// Number of the worker, as in the move.
        id: u32,
        /// Text that the worker is asked.
        sub_query: String,
        /// The worker's work.
        worker: WorkerScript,
    },
    /// Waits for a worker.
    Join(u32),
    /// Ends with an answer.
    Answer(String),
}

/// A task's writer of cold-start work: what agents think, ask, return and answer.
pub trait Solver: Debug + Send + Sync {
    /// Texts that hold every word the solver writes, for a tokenizer made from the task's text.
    fn vocabulary(&self) -> Vec<String>;

    /// Solves a problem; `None` where it is of another task. The same seed gives the same solutions.
    fn solve(&self, problem: &Problem, seed: u64) -> Option<Box<dyn SolvedProblem>>;
}

/// A problem with its solutions.
pub trait SolvedProblem: Debug + Send + Sync {
    /// The problem.
    fn problem(&self) -> Problem;

    /// Draws the problem to ask for in place of this one, and solves it; `None` where this one is asked for. The split key
    /// of a variant is never in `held_out`.
    fn variant(
        &self,
        settings: &SolverSettings,
        held_out: &BTreeSet<String>,
        rng: &mut dyn Rng,
    ) -> Option<Box<dyn SolvedProblem>>;

    /// Writes the organizer's steps, which hold the moves in their order and end with an answer. `query` is the problem as
    /// agents are asked for it.
    fn write(
        &self,
        query: &str,
        moves: &[Move],
        settings: &SolverSettings,
        rng: &mut dyn Rng,
    ) -> Vec<ScriptStep>;
}
