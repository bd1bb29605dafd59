//! Files as people have them: compressed, in another encoding, or a stand-in for what was to be downloaded.
//!
//! A parser that meets such a file names its first byte, which helps nobody. [`FileKind`] says what the file is and what to do
//! about it, [`read_text`] and [`read_structured`] say so before anything is parsed. The crate knows no format of this framework.

mod error;
mod kind;
mod text;

pub use crate::error::{Error, Result};
pub use crate::kind::{FileKind, HEAD_BYTES};
pub use crate::text::{NotText, decode_text, read_structured, read_text};
