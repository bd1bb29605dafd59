//! Tasks: where problems come from and how answers are graded.
//!
//! A task is a folder with one implementation of [`Task`] and one of [`TaskProblem`], and a line in
//! [`Registry::builtin`]; [`mcd`] is the first. It brings the schema of its recipe section, the placeholders of its query
//! template, its problems, its grader, the keys by which problems are split and answers are compared, and, where it can,
//! a [`Solver`] that writes cold-start work. Everybody else holds a [`Problem`] or a [`TaskConfig`] and names no task.
//!
//! Graders are pure functions of text; no text of a model is ever evaluated as code. They meet text written by a policy
//! that is rewarded for fooling them. Each one therefore states its bounds (bytes, depth, items) and answers every input with
//! a [`Grade`]: there is no failure besides a wrong answer.

mod config;
mod error;
mod grade;
pub mod mcd;
mod numbers;
mod problem;
mod registry;
mod solver;
mod task;

pub use config::{ConfigFault, ConfigView, FaultKind, schema_of};
pub use error::Error;
pub use grade::{Grade, Item, Reason};
pub use numbers::pad_numbers;
pub use problem::{Problem, TaskProblem};
pub use registry::Registry;
pub use solver::{Move, ScriptStep, SolvedProblem, Solver, SolverSettings, WorkerScript};
pub use task::{
    ConfiguredTask, InputFile, Placeholders, ProblemCount, ProblemCounts, ProblemSet, Split, Task,
    TaskConfig,
};
