//! Cold-start traces: what a model is shown before it learns by itself.
//!
//! The paper has a large model write organizer and worker traces (arXiv:2510.26658, section 3.1). Here a [`Teacher`] does: the
//! built-in one asks the solver of the task, so that everything runs with no network. As in the paper, each trace follows a random legal
//! sequence of Forks and Joins, because models otherwise fall into two shapes; rules filter what was written; and a trace of n
//! sub-queries becomes n + 1 query-response pairs. Answers need not be right.
//!
//! ```text
//! settings ─► problems ─► topology per trace ─► lessons ─► teacher ─► rule filter ─► pairs, files, report
//! ```
//!
//! All but the teacher is shared and knows no task. Several ranks make the same files as one.

mod assignment;
mod candidate;
mod error;
mod exchange;
mod filter;
mod manifest;
mod pipeline;
mod problems;
mod report;
mod run;
mod seeds;
mod selection;
mod settings;
pub mod teacher;
mod tokenizer;
mod topology;
mod trace;

pub use crate::error::{Error, Result};
pub use crate::exchange::{Exchange, ExchangeError, RankFailure, SingleRank};
pub use crate::pipeline::synthesize;
pub use crate::problems::problem_set;
pub use crate::report::SynthReport;
pub use crate::run::{SynthProgress, SynthStage, run, run_with};
pub use crate::settings::{ColdstartSettings, TokenizerSource};
pub use crate::teacher::Teacher;
pub use crate::topology::{Event, Topologies};
pub use crate::trace::SynthTrace;
