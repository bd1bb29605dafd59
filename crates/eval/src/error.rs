//! What can go wrong while measuring.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe lacks `[eval]`.
    #[error("the recipe has no `[eval]` section")]
    MissingSection,
    /// The measurement was asked to stop.
    #[error("the evaluation was stopped")]
    Stopped,
    /// The model could not be loaded or run, or its problems could not be read.
    #[error(transparent)]
    Model(#[from] asyncthink_trainer::Error),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
