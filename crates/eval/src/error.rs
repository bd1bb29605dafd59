//! What can go wrong while measuring.

use asyncthink_trainer::SharedFailure;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe lacks `[eval]`.
    #[error("the recipe has no `[eval]` section")]
    MissingSection,
    /// The recipe asks for more held-out problems than there are.
    #[error("`eval.num_problems` is {wanted}, and there are {found} test problems")]
    TooFewProblems {
        /// Problems asked for.
        wanted: usize,
        /// Problems there are.
        found: usize,
    },
    /// The measurement was asked to stop, on this rank or another.
    #[error("the evaluation was stopped")]
    Stopped,
    /// The episodes of the ranks could not be put together.
    #[error("cannot put the episodes of the ranks together: {reason}")]
    Shares {
        /// Why not.
        reason: String,
    },
    /// The model could not be loaded or run, or its problems could not be read.
    #[error(transparent)]
    Model(#[from] asyncthink_trainer::Error),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl SharedFailure for Error {
    fn is_input(&self) -> bool {
        match self {
            Self::MissingSection | Self::TooFewProblems { .. } => true,
            Self::Model(error) => error.is_input(),
            Self::Stopped | Self::Shares { .. } => false,
        }
    }
}
