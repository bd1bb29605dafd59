//! The error type of this crate.

use std::io;

/// Why traces could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Rows, templates or the tokenizer.
    #[error(transparent)]
    Data(#[from] asyncthink_data::Error),
    /// Problems could not be generated or read.
    #[error(transparent)]
    Tasks(#[from] asyncthink_tasks::Error),
    /// There are fewer problems than a stage uses.
    #[error(
        "`{key}` is {wanted}, and {origin} holds {found} problems; lower it, or leave it out where it may be absent"
    )]
    TooFewProblems {
        /// The recipe's key.
        key: &'static str,
        /// Problems asked for.
        wanted: usize,
        /// Problems there are.
        found: usize,
        /// The file, or the task.
        origin: String,
    },
    /// More Fork/Join sequences than can be counted exactly.
    #[error(
        "the Fork/Join sequences of capacity {capacity} with at most {max_forks} forks are too many to draw from uniformly; \
         set `synth.topology_max_forks` to 28 or less"
    )]
    TooManyTopologies {
        /// The pool's capacity.
        capacity: u32,
        /// The bound on Forks.
        max_forks: u32,
    },
    /// The recipe has no `[synth]` section.
    #[error("the recipe has no section `[synth]`")]
    NoSection,
    /// The recipe names a teacher that does not exist.
    #[error("no such teacher: `{name}`; choose one of {known}")]
    UnknownTeacher {
        /// The name.
        name: String,
        /// The teachers that exist.
        known: String,
    },
    /// The teacher cannot write traces of the recipe's task.
    #[error(
        "the teacher `{teacher}` cannot teach the task `{task}`; choose another one as `[synth.teacher.<name>]`"
    )]
    TaskNotTaught {
        /// The teacher.
        teacher: String,
        /// The task.
        task: String,
    },
    /// The teacher failed as a whole.
    #[error("the teacher `{teacher}` failed: {message}")]
    Teacher {
        /// The teacher.
        teacher: String,
        /// The cause.
        message: String,
    },
    /// The rules refused too many traces.
    #[error(
        "only {accepted} of {wanted} traces pass the rules; refused: {rejected}; \
         raise the budgets in `[protocol]`, or lower the attempts in `[synth]`"
    )]
    TooFewTraces {
        /// Traces asked for.
        wanted: usize,
        /// Traces that passed.
        accepted: usize,
        /// Refused traces by reason.
        rejected: String,
    },
    /// Another rank has given up; this one is well.
    #[error("rank {rank} failed: {message}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// What it said.
        message: String,
        /// Whether it found its input wrong.
        is_input: bool,
    },
    /// This rank was not started with what the first rank was started with.
    #[error("this rank has another recipe or other files than the first rank")]
    RanksDiffer,
    /// A rank sent a message that does not fit.
    #[error("what rank {rank} sent cannot be used: {reason}")]
    InvalidMessage {
        /// The rank.
        rank: usize,
        /// What is wrong.
        reason: String,
    },
    /// The ranks could not exchange anything.
    #[error(transparent)]
    Exchange(Box<dyn std::error::Error + Send + Sync>),
    /// The manifest could not be written as JSON.
    #[error("cannot write the manifest: {0}")]
    Manifest(#[from] serde_json::Error),
}

impl Error {
    /// A message of a rank that does not fit.
    pub(crate) fn invalid_message(rank: usize, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::InvalidMessage { rank, reason }
    }

    /// Whether the user's input is at fault, rather than the run.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Data(error) => error.is_input(),
            Self::Tasks(error) => error.is_input(),
            Self::Io(error) => error.kind() == io::ErrorKind::NotFound,
            Self::OtherRank { is_input, .. } => *is_input,
            Self::Manifest(_)
            | Self::InvalidMessage { .. }
            | Self::Exchange(_)
            | Self::Teacher { .. } => false,
            _ => true,
        }
    }
}

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
