//! Errors between ranks.

use std::io;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// libtorch refused an operation.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
    /// A device, a kernel or a collective of the torch crate failed.
    #[error(transparent)]
    Kernel(#[from] asyncthink_torch::Error),
    /// A model could not be built or loaded.
    #[error(transparent)]
    Model(#[from] asyncthink_model::Error),
    /// The environment of the launcher is wrong.
    #[error(transparent)]
    Launch(#[from] asyncthink_launch::Error),
    /// The rank that serves the store does not: it has not started, is stopped, dead or cut off.
    #[error(
        "rank {missing} of {world_size} gives no sign of life: its store does not answer rank {rank} in `{phase}`: {source}"
    )]
    NoStore {
        /// Reporting rank.
        rank: usize,
        /// How many ranks there are.
        world_size: usize,
        /// What the reporting rank was at.
        phase: String,
        /// Rank that serves the store.
        missing: usize,
        /// The failed call.
        source: Box<asyncthink_torch::Error>,
    },
    /// Another rank has failed; this one is well.
    #[error("rank {rank} failed: {message}")]
    OtherRank {
        /// Rank that failed.
        rank: usize,
        /// Error message of that rank.
        message: String,
        /// Whether it found its input wrong.
        is_input: bool,
    },
    /// Several ranks of a machine were given one GPU.
    #[error("`device` is `{device}` for all {num_local_ranks} ranks of this machine")]
    SharedGpu {
        /// The recipe's device.
        device: String,
        /// Ranks of this machine.
        num_local_ranks: usize,
    },
    /// A step of the work failed.
    #[error("{context}: {source}")]
    Stage {
        /// Operation that failed.
        context: String,
        /// Reason of the failure.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn stage(
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Stage {
            context: context.into(),
            source: source.into(),
        }
    }

    /// Remedy for the user.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::OtherRank { .. } => "what that rank said itself tells more, and what to do",
            Self::SharedGpu { .. } => {
                "write `cuda`: each rank then takes the GPU of its local rank"
            }
            Self::Kernel(error) => return error.hint(),
            Self::Launch(error) => return error.hint(),
            Self::NoStore { .. } => {
                "the log of that rank tells what happened there; raise `distributed.timeout_secs` if it only starts slowly"
            }
            _ => return None,
        })
    }

    /// Whether the user's input is at fault, rather than the run.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Launch(error) => error.is_input(),
            Self::OtherRank { is_input: true, .. } | Self::SharedGpu { .. } => true,
            _ => false,
        }
    }
}

/// An error that ranks tell each other.
pub trait SharedFailure: From<Error> + std::fmt::Display {
    /// Whether the user's input is at fault, rather than the run.
    fn is_input(&self) -> bool;
}

impl SharedFailure for Error {
    fn is_input(&self) -> bool {
        Error::is_input(self)
    }
}
