//! Any bytes of a file are text or named for what they are without a panic; text comes back as it is.

#![no_main]

use std::fs;
use std::path::PathBuf;

use asyncthink_files::{
    Error, FileKind, HEAD_BYTES, NotText, decode_text, read_structured, read_text,
};
use libfuzzer_sys::fuzz_target;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Prefixes of valid UTF-8 that is refused, unless it holds zero bytes.
const OTHER_STARTS: [&[u8]; 6] = [
    b"BZh",
    b"GGUF",
    b"PAR1",
    b"PK\x03\x04",
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
];

fuzz_target!(|data: &[u8]| {
    let head = &data[..data.len().min(HEAD_BYTES)];
    let kind = FileKind::of_bytes(head);
    let content = data.strip_prefix(BYTE_ORDER_MARK).unwrap_or(data);
    let text = decode_text(data);
    match text {
        Ok(text) => {
            assert_eq!(text.as_bytes(), content);
            assert!(matches!(kind, None | Some(FileKind::WebPage)));
        }
        Err(NotText::Kind(found)) => {
            assert_eq!(kind, Some(found));
            assert!(!found.to_string().is_empty() && !found.hint().is_empty());
            let is_known = OTHER_STARTS.iter().any(|start| content.starts_with(start));
            assert!(is_known || content.contains(&0) || str::from_utf8(content).is_err());
        }
        Err(NotText::Utf8 { line, byte }) => {
            let at = str::from_utf8(content).expect_err("no UTF-8").valid_up_to();
            let num_ends = content[..at].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!((line, byte), (num_ends + 1, content[at]));
        }
    }
    // Reading it from a file gives the same text.
    let file = PathBuf::from(format!("/dev/shm/file_kind.{}", std::process::id()));
    fs::write(&file, data).expect("a file");
    assert_eq!(FileKind::of_path(&file), kind);
    assert_eq!(
        read_text(&file).ok().as_deref(),
        text.ok(),
        "read as a text"
    );
    match read_structured(&file) {
        Ok(read) => assert_eq!(Ok(read.as_str()), text),
        Err(Error::OtherKind {
            kind: FileKind::WebPage,
            ..
        }) => assert_eq!(kind, Some(FileKind::WebPage)),
        Err(_) => assert!(text.is_err()),
    }
});
