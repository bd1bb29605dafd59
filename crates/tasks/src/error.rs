//! The one error type of this crate.

use crate::grade::Reason;

/// Why a problem could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a problem has a value that no problem can have.
    #[error("invalid problem: `{field}` {reason}: {value}")]
    InvalidProblem {
        /// Name of the field in JSON.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
        /// The value as given.
        value: String,
    },

    /// A field of a generator's settings has a value that cannot work.
    #[error("cannot generate problems: `{field}` {reason}: {value}")]
    InvalidGenerator {
        /// Name of the field of [`crate::mcd::GeneratorConfig`].
        field: &'static str,
        /// What is wrong with it.
        reason: String,
        /// The value as given.
        value: String,
    },

    /// The settings are sound, but too few problems satisfy them.
    #[error(
        "cannot generate {wanted} {split} problems: found {found} after {num_attempts} attempts; \
         widen `number_range` or `target_range`, ask for fewer problems, or lower `required`"
    )]
    TooFewProblems {
        /// `train` or `test`.
        split: &'static str,
        /// Problems asked for.
        wanted: usize,
        /// Problems found.
        found: usize,
        /// Candidates tried.
        num_attempts: u64,
    },

    /// A line of a file of problems could not be read.
    #[error("cannot read line {line}")]
    ReadLine {
        /// Line number from 1.
        line: usize,
        /// The cause.
        source: std::io::Error,
    },

    /// A line of a file of problems is not the JSON that it should be.
    #[error("invalid row at line {line}")]
    ParseRow {
        /// Line number from 1.
        line: usize,
        /// The cause.
        source: serde_json::Error,
    },

    /// A row parses but describes no possible problem.
    #[error("invalid row at line {line}")]
    InvalidRow {
        /// Line number from 1.
        line: usize,
        /// The cause.
        source: Box<Error>,
    },

    /// A solution stored in a row is refused by the grader.
    #[error("row {index}: stored solution `{text}` is wrong: {reason}")]
    WrongStoredSolution {
        /// The row's `index` field.
        index: i64,
        /// The stored text, cut if long.
        text: String,
        /// The grader's reason.
        reason: Reason,
    },
}
