use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::kind::{BYTE_ORDER_MARK, FileKind, HEAD_BYTES};

/// A reason for which bytes are no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotText {
    /// They are something else.
    Kind(FileKind),
    /// A byte is not valid UTF-8.
    Utf8 {
        /// Line of the byte, from 1.
        line: usize,
        /// The byte.
        byte: u8,
    },
}

impl NotText {
    /// The error for the file that the bytes came from.
    pub fn in_file(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Kind(kind) => Error::OtherKind { path, kind },
            Self::Utf8 { line, byte } => Error::NotUtf8 { path, line, byte },
        }
    }
}

/// The UTF-8 text of a whole file's bytes, without a byte-order mark.
///
/// # Errors
/// When the bytes are compressed, in another encoding, or a Git LFS pointer.
pub fn decode_text(bytes: &[u8]) -> Result<&str, NotText> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    if let Some(kind) = FileKind::of_bytes(head).filter(|kind| kind.is_no_text()) {
        return Err(NotText::Kind(kind));
    }
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        NotText::Utf8 {
            line: bytes[..at].split(|&byte| byte == b'\n').count(),
            byte: bytes.get(at).copied().unwrap_or_default(),
        }
    })
}

/// Reads a text file of any content, a template for instance: UTF-8, of which a byte-order mark is left out.
///
/// # Errors
/// When the file cannot be read, or is not text ([`decode_text`]) but, for instance, a folder.
pub fn read_text(path: &Path) -> Result<String> {
    read(path, |_| true)
}

/// Reads the text of a JSON or TOML file. As [`read_text`]; a web page, which is text but neither, is refused too.
///
/// # Errors
/// As [`read_text`].
pub fn read_structured(path: &Path) -> Result<String> {
    read(path, |kind| kind != FileKind::WebPage)
}

fn read(path: &Path, is_accepted: impl Fn(FileKind) -> bool) -> Result<String> {
    let refuse = |kind| Error::OtherKind {
        path: path.to_owned(),
        kind,
    };
    if path.is_dir() {
        return Err(refuse(FileKind::Folder));
    }
    let mut file = fs_err::File::open(path)?;
    // Gigabytes of weights under the name of a text are not read to be refused.
    let mut bytes = Vec::new();
    (&mut file)
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut bytes)?;
    if let Some(kind) = FileKind::of_bytes(&bytes)
        && (kind.is_no_text() || !is_accepted(kind))
    {
        return Err(refuse(kind));
    }
    file.read_to_end(&mut bytes)?;
    Ok(decode_text(&bytes)
        .map_err(|error| error.in_file(path))?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_what_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let read = |bytes: &[u8], read: fn(&Path) -> Result<String>| {
            fs_err::write(&path, bytes).unwrap();
            read(&path).map_err(|error| error.to_string().replace(path.to_str().unwrap(), "file"))
        };
        let long = format!("{{\"é\": \"{}\"}}", "x".repeat(2 * HEAD_BYTES));
        for text in ["", "{}", &long] {
            assert_eq!(read(text.as_bytes(), read_structured).unwrap(), text);
            let marked = [BYTE_ORDER_MARK, text.as_bytes()].concat();
            assert_eq!(read(&marked, read_structured).unwrap(), text);
        }
        let page = b"<html><body>{{ messages }}</body></html>";
        assert!(read(page, read_text).is_ok());
        for (bytes, message) in [
            (&page[..], "`file` is a web page in place of the file"),
            (b"\x1f\x8b\x08\0", "`file` is compressed (gzip)"),
            (b"\xff\xfe{\0", "`file` is text in UTF-16, not UTF-8"),
            (
                b"a\nb\n\xe9t\xe9\n",
                "`file`, line 3: byte 0xe9 is not valid UTF-8",
            ),
        ] {
            assert_eq!(read(bytes, read_structured).unwrap_err(), message);
        }
    }

    #[test]
    fn a_folder_and_a_missing_file_are_the_user_s_to_mend() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_structured(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("is a folder, not a file"));
        assert!(error.is_input() && error.hint().is_some());
        let error = read_text(&dir.path().join("none")).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("none"));
    }
}
