//! Where questions come from and how answers are graded.
//!
//! Everything here is a pure function of text and numbers: no files are opened, no tensors exist, and no text
//! of a model is ever evaluated as code. A task is a module ([`mcd`] so far) with a problem type, a grader, and
//! whatever it needs to make problems; [`Problem`] is the sum of all tasks, so that rollout and evaluation never
//! name one.
//!
//! Graders meet text written by a policy that is rewarded for fooling them. Each one therefore states its bounds
//! (bytes, depth, items) and answers every input with a [`Grade`]: there is no failure besides a wrong answer.

mod error;
mod grade;
pub mod mcd;
mod problem;

pub use error::Error;
pub use grade::{Grade, Item, Reason};
pub use problem::Problem;
