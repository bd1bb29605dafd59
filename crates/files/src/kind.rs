use std::fmt;
use std::io::Read;
use std::path::Path;

/// Bytes of a file's beginning that tell its kind.
pub const HEAD_BYTES: usize = 512;

/// Mark that some editors put before text in UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Kind of a file that stands where another one was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A folder.
    Folder,
    /// Text that Git keeps in place of a large file until `git lfs pull`.
    LfsPointer,
    /// A page that a server sent in place of the file, as HTML or XML.
    WebPage,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by Zstandard.
    Zstd,
    /// Compressed by xz.
    Xz,
    /// Compressed by bzip2.
    Bzip2,
    /// A zip archive.
    Zip,
    /// Weights as `torch.save` writes them.
    Pickle,
    /// A model of llama.cpp.
    Gguf,
    /// A Parquet file.
    Parquet,
    /// Text in UTF-16.
    Utf16,
    /// Text in UTF-32.
    Utf32,
}

impl FileKind {
    /// The kind of a path: a folder, or what the beginning of the file says. `None` where it is nothing special or cannot be read.
    pub fn of_path(path: &Path) -> Option<Self> {
        if path.is_dir() {
            return Some(Self::Folder);
        }
        let mut head = Vec::new();
        let file = fs_err::File::open(path).ok()?;
        file.take(HEAD_BYTES as u64).read_to_end(&mut head).ok()?;
        Self::of_bytes(&head)
    }

    /// The kind of a file that begins with `head`, of which [`HEAD_BYTES`] are enough.
    pub fn of_bytes(head: &[u8]) -> Option<Self> {
        const ZIP: &[u8] = b"PK\x03\x04";
        const STARTS: [(&[u8], FileKind); 10] = [
            (b"\x1f\x8b", FileKind::Gzip),
            (b"\x28\xb5\x2f\xfd", FileKind::Zstd),
            (b"\xfd7zXZ\0", FileKind::Xz),
            (b"BZh", FileKind::Bzip2),
            // `torch.save` before 1.6: a pickled number that marks its files.
            (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46", FileKind::Pickle),
            (b"GGUF", FileKind::Gguf),
            (b"PAR1", FileKind::Parquet),
            // Before UTF-16, whose mark is the beginning of this one.
            (b"\xff\xfe\0\0", FileKind::Utf32),
            (b"\0\0\xfe\xff", FileKind::Utf32),
            (b"\xff\xfe", FileKind::Utf16),
        ];
        if head.starts_with(ZIP) {
            return Some(if is_torch_archive(head) {
                Self::Pickle
            } else {
                Self::Zip
            });
        }
        if let Some((_, kind)) = STARTS.iter().find(|(start, _)| head.starts_with(start)) {
            let is_text = match kind {
                Self::Bzip2 => head.get(4..10) != Some(b"1AY&SY"),
                // A version, or the first field of a header, follows; neither is a character.
                Self::Gguf | Self::Parquet => head.get(4).is_some_and(|&byte| is_char(byte)),
                _ => false,
            };
            return (!is_text).then_some(*kind);
        }
        if head.starts_with(b"\xfe\xff") || is_unmarked_utf16(head) {
            return Some(Self::Utf16);
        }
        let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
        if is_lfs_pointer(text) {
            return Some(Self::LfsPointer);
        }
        is_web_page(text).then_some(Self::WebPage)
    }

    /// Whether no text that this framework reads can begin like this.
    pub(crate) fn is_no_text(self) -> bool {
        self != Self::WebPage
    }

    /// Advice for the user.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Folder => "give the file itself, not the folder that holds it",
            Self::LfsPointer => {
                "fetch the file that it stands for: `git lfs install` once, then `git lfs pull` in its folder; or download the \
                 folder with `hf download`"
            }
            Self::WebPage => {
                "the server answered with a page, often to ask for a login: download the file again, for example with `hf download`"
            }
            Self::Gzip => "unpack it with `gunzip`",
            Self::Zstd => "unpack it with `zstd -d`",
            Self::Xz => "unpack it with `xz -d`",
            Self::Bzip2 => "unpack it with `bunzip2`",
            Self::Zip => "unpack it with `unzip`",
            Self::Pickle => {
                "convert the model to safetensors: load it with `transformers` and write it with `save_pretrained`"
            }
            Self::Gguf => {
                "give the Hugging Face folder that it was made from, with `config.json` and `model.safetensors`"
            }
            Self::Parquet => "give the file in the format that is expected here",
            Self::Utf16 => "save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8`",
            Self::Utf32 => "save it as UTF-8, for example with `iconv -f UTF-32 -t UTF-8`",
        }
    }
}

/// A noun phrase: `a Git LFS pointer in place of the file`.
impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "a folder, not a file",
            Self::LfsPointer => "a Git LFS pointer in place of the file",
            Self::WebPage => "a web page in place of the file",
            Self::Gzip => "compressed (gzip)",
            Self::Zstd => "compressed (Zstandard)",
            Self::Xz => "compressed (xz)",
            Self::Bzip2 => "compressed (bzip2)",
            Self::Zip => "a zip archive",
            Self::Pickle => "a pickled PyTorch file",
            Self::Gguf => "a GGUF file",
            Self::Parquet => "a Parquet file",
            Self::Utf16 => "text in UTF-16, not UTF-8",
            Self::Utf32 => "text in UTF-32, not UTF-8",
        })
    }
}

fn is_lfs_pointer(text: &[u8]) -> bool {
    text.starts_with(b"version https://git-lfs.github.com/spec/")
        || text.starts_with(b"version https://hawser.github.com/spec/")
}

fn is_web_page(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    ["<!doctype html", "<html", "<?xml"].iter().any(|start| {
        text.get(..start.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(start.as_bytes()))
    })
}

/// A zip archive whose first entry is one of those that `torch.save` writes.
fn is_torch_archive(head: &[u8]) -> bool {
    let Some(&[low, high]) = head.get(26..28) else {
        return false;
    };
    let name_bytes = usize::from(u16::from_le_bytes([low, high]));
    head.get(30..30 + name_bytes)
        .is_some_and(|name| name.ends_with(b"/data.pkl"))
}

/// Text in UTF-16 without a mark: printable ASCII and a zero byte in turn. No UTF-8 text that is read here holds zero bytes.
fn is_unmarked_utf16(head: &[u8]) -> bool {
    const PAIRS: usize = 4;
    let Some(head) = head.get(..2 * PAIRS) else {
        return false;
    };
    let all = |char_at: usize| {
        head.chunks_exact(2)
            .all(|pair| is_char(pair[char_at]) && pair[1 - char_at] == 0)
    };
    all(0) || all(1)
}

fn is_char(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte.is_ascii_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_tells_the_kind() {
        let utf16 = |text: &str, swap: bool| -> Vec<u8> {
            let units = text.encode_utf16();
            units
                .flat_map(|unit| {
                    if swap {
                        unit.to_be_bytes()
                    } else {
                        unit.to_le_bytes()
                    }
                })
                .collect()
        };
        let zip = |name: &str| {
            let mut bytes = b"PK\x03\x04".to_vec();
            bytes.resize(26, 0);
            bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
            bytes.extend([0, 0]);
            bytes.extend(name.bytes());
            bytes
        };
        for (head, kind) in [
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(),
                FileKind::LfsPointer,
            ),
            (
                b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\n".to_vec(),
                FileKind::LfsPointer,
            ),
            (b"\n <!DOCTYPE html><html>".to_vec(), FileKind::WebPage),
            (b"<HTML lang=en>".to_vec(), FileKind::WebPage),
            (b"<?xml version='1.0'?><Error>".to_vec(), FileKind::WebPage),
            (b"\x1f\x8b\x08\0".to_vec(), FileKind::Gzip),
            (b"\x28\xb5\x2f\xfd\0".to_vec(), FileKind::Zstd),
            (b"\xfd7zXZ\0\0".to_vec(), FileKind::Xz),
            (b"BZh91AY&SY".to_vec(), FileKind::Bzip2),
            (b"GGUF\x03\0\0\0".to_vec(), FileKind::Gguf),
            (b"PAR1".to_vec(), FileKind::Parquet),
            (zip("archive/data.pkl"), FileKind::Pickle),
            (zip("notes.txt"), FileKind::Zip),
            (
                b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9".to_vec(),
                FileKind::Pickle,
            ),
            (utf16("\u{feff}{}", false), FileKind::Utf16),
            (utf16("\u{feff}{}", true), FileKind::Utf16),
            (utf16("{\"a\": 1}", false), FileKind::Utf16),
            (utf16("{\"a\": 1}", true), FileKind::Utf16),
            (b"\xff\xfe\0\0{\0\0\0".to_vec(), FileKind::Utf32),
        ] {
            assert_eq!(FileKind::of_bytes(&head), Some(kind), "{head:?}");
        }
    }

    #[test]
    fn ordinary_files_are_nothing_special() {
        for head in [
            &b""[..],
            b"{\"model_type\": \"qwen3\"}",
            b"\xef\xbb\xbf{}",
            b"BZhou wrote: x",
            b"GGUF files are not read here.",
            b"PAR1 = 3",
            b"<|im_start|>user",
            b"<think>\n",
            b"version = 1\n",
            b"PK",
            // The length of a safetensors header.
            b"\x40\x0c\0\0\0\0\0\0{\"model",
        ] {
            assert_eq!(FileKind::of_bytes(head), None, "{head:?}");
        }
    }

    #[test]
    fn a_folder_is_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(FileKind::of_path(dir.path()), Some(FileKind::Folder));
        assert_eq!(FileKind::of_path(&dir.path().join("none")), None);
    }
}
