//! Errors of evaluation.

use asyncthink_distributed::SharedFailure;

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
    /// The recipe names a method that does not exist.
    #[error("`eval.methods`: there is no method `{name}` (known: {known})")]
    UnknownMethod {
        /// The name.
        name: String,
        /// Every name.
        known: String,
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
    /// Another rank failed or was lost.
    #[error(transparent)]
    Ranks(#[from] asyncthink_distributed::Error),
    /// The model could not be loaded.
    #[error(transparent)]
    Model(#[from] asyncthink_model::Error),
    /// The model could not be run.
    #[error(transparent)]
    Rollout(#[from] asyncthink_rollout::Error),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl SharedFailure for Error {
    fn is_input(&self) -> bool {
        match self {
            Self::MissingSection | Self::TooFewProblems { .. } | Self::UnknownMethod { .. } => true,
            Self::Ranks(error) => error.is_input(),
            Self::Model(error) => {
                matches!(error, asyncthink_model::Error::VocabularyTooLarge { .. })
            }
            Self::Stopped | Self::Shares { .. } | Self::Rollout(_) => false,
        }
    }
}
