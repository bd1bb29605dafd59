//! The one error type of this crate.

use std::path::PathBuf;

use crate::grade::Reason;

/// Why a problem could not be made or read, or a task not be configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a problem has a value that no problem can have.
    #[error("invalid problem: `{field}` {reason}: {value}")]
    InvalidProblem {
        /// Name of the field in JSON.
        field: &'static str,
        /// Reason it is invalid.
        reason: &'static str,
        /// The value as given.
        value: String,
    },

    /// A field of a generator's settings has a value that cannot work.
    #[error("cannot generate problems: `{field}` {reason}: {value}")]
    InvalidGenerator {
        /// Name of the setting.
        field: &'static str,
        /// Reason it is invalid.
        reason: String,
        /// The value as given.
        value: String,
    },

    /// The settings are sound, but too few problems satisfy them.
    #[error(
        "cannot generate {wanted} {split} problems: found {found} after {num_attempts} attempts; \
         {remedy}"
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
        /// Remedy for the user.
        remedy: &'static str,
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

    /// A file could not be read, or is no text; the message names it.
    #[error(transparent)]
    File(#[from] asyncthink_files::Error),

    /// A file of problems is wrong.
    #[error("cannot read problems from `{path}`: {source}")]
    ProblemFile {
        /// The file.
        path: PathBuf,
        /// Form of a line.
        line_form: &'static str,
        /// The cause, with its line.
        source: Box<Error>,
    },

    /// A file of problems holds none.
    #[error("`{path}` holds no problems")]
    NoProblems {
        /// The file.
        path: PathBuf,
        /// Form of a line.
        line_form: &'static str,
    },

    /// The section of a task has another form than its schema says.
    #[error("cannot use `[task.{task}]`: {reason}")]
    Config {
        /// The task.
        task: &'static str,
        /// Reason it is invalid.
        reason: String,
    },
}

impl Error {
    /// A section that a task cannot take.
    pub fn config(task: &'static str, reason: &dyn std::fmt::Display) -> Self {
        Self::Config {
            task,
            reason: reason.to_string(),
        }
    }

    /// Whether the user's input is at fault, rather than the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::File(error) => error.is_input(),
            _ => true,
        }
    }

    /// Remedy for the user, where the message has none.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint().map(str::to_owned),
            Self::ProblemFile { line_form, .. } | Self::NoProblems { line_form, .. } => {
                Some(format!("each line is {line_form}"))
            }
            _ => None,
        }
    }
}
