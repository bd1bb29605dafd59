//! Errors of gradients and scores.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
    /// A kernel of the torch crate refused.
    #[error(transparent)]
    Kernel(#[from] asyncthink_torch::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] asyncthink_model::Error),
    /// A rank failed or was lost.
    #[error(transparent)]
    Distributed(#[from] asyncthink_distributed::Error),
    /// A step of the work failed.
    #[error("{context}: {reason}")]
    Stage {
        /// Operation that failed.
        context: &'static str,
        /// Reason of the failure.
        reason: String,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn stage(context: &'static str, reason: impl Into<String>) -> Self {
        Self::Stage {
            context,
            reason: reason.into(),
        }
    }
}
