use std::io;
use std::path::PathBuf;

use crate::FileKind;

/// A reason for which a file's text cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read; the message names it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is something else than what was expected.
    #[error("`{path}` is {kind}")]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// Kind of the file.
        kind: FileKind,
    },
    /// The file is text in an encoding that is not known, or no text.
    #[error("`{path}`, line {line}: byte {byte:#04x} is not valid UTF-8")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the byte, from 1.
        line: usize,
        /// The first byte that is not valid.
        byte: u8,
    },
}

impl Error {
    /// Whether the user's file is at fault, rather than the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::NotFound,
            _ => true,
        }
    }

    /// Advice for the user.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io(_) => None,
            Self::OtherKind { kind, .. } => Some(kind.hint()),
            Self::NotUtf8 { .. } => {
                Some("save the file as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`")
            }
        }
    }
}

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
