//! Errors of metrics sinks.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Metrics could not be written as JSON.
    #[error("writing `{path}`: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// A sink failed.
    #[error("metrics sink `{sink}`: {reason}")]
    Sink {
        /// Name of the sink.
        sink: &'static str,
        /// Why it failed.
        reason: String,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
