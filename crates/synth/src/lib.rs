//! Cold-start traces: what a model is shown before it learns by itself.
//!
//! The paper has a large model write organizer and worker traces (arXiv:2510.26658, section 3.1). Here a solver writes them, so
//! that everything runs with no network. As in the paper, each trace follows a random legal sequence of Forks and Joins,
//! because models otherwise fall into two shapes; rules filter what was written; and a trace of n sub-queries becomes n + 1
//! query-response pairs. Answers need not be right.
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

mod arithmetic;
mod candidate;
mod error;
mod manifest;
mod peers;
mod problems;
mod report;
mod run;
mod seeds;
mod solver_teacher;
mod topology;
mod trace;

pub use crate::error::Error;
pub use crate::peers::{Alone, Peers};
pub use crate::problems::{ProblemSet, problem_set};
pub use crate::report::SynthReport;
pub use crate::run::{SynthProgress, SynthStage, run, run_with};
pub use crate::topology::{Event, Topologies};
pub use crate::trace::{SynthTrace, synthesize};

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
