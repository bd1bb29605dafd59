//! Any bytes as a file of JSON lines: every line that is not blank is there once, with its number, and the id of one that
//! parses is found byte for byte.
//!
//! The reader of the program's `trace`, `grade` and `score` is compiled alone, because the program needs libtorch.

#![no_main]

use std::fs;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde_json::value::RawValue;

#[allow(dead_code)]
#[path = "../../crates/cli/src/lines.rs"]
mod lines;

mod failure {
    /// Stands for the program's error, which the reader only makes.
    #[derive(Debug)]
    pub(crate) struct Failure;

    impl Failure {
        pub(crate) fn input(_: impl Into<String>) -> Self {
            Self
        }

        pub(crate) fn run(_: impl Into<String>) -> Self {
            Self
        }

        pub(crate) fn cause(self, _: impl Into<String>) -> Self {
            self
        }

        pub(crate) fn hint(self, _: impl Into<String>) -> Self {
            self
        }
    }

    impl From<std::io::Error> for Failure {
        fn from(_: std::io::Error) -> Self {
            Self
        }
    }
}

/// A line with an id, and a field that few lines have.
#[derive(Deserialize)]
struct Object<'a> {
    #[serde(default, borrow)]
    id: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Strict {
    #[allow(dead_code)]
    only: bool,
}

fuzz_target!(|data: &[u8]| {
    let file = PathBuf::from(format!("/dev/shm/json_lines.{}", std::process::id()));
    fs::write(&file, data).expect("a file");
    let Ok(mut reader) = lines::LineReader::open(&file) else {
        return;
    };
    let text = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let expected = (1..).zip(text.split(|&byte| byte == b'\n'));
    let mut expected = expected.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace));
    while let Some(line) = reader.next_line().expect("a file can be read") {
        let line = line.expect("a short line");
        let (number, bytes) = expected.next().expect("a line of the file");
        assert_eq!(
            (line.number, &line.bytes[..]),
            (number, bytes.trim_ascii_end())
        );
        let Err(refused) = lines::parse::<Strict>(&line) else {
            continue;
        };
        assert!(
            refused.message.contains(&format!("at line {number}")),
            "{}",
            refused.message
        );
        if line.bytes.trim_ascii_start().starts_with(b"{")
            && let Ok(object) = serde_json::from_slice::<Object<'_>>(&line.bytes)
        {
            // Of `null`, serde makes none.
            let found = refused
                .id
                .as_deref()
                .map(RawValue::get)
                .filter(|id| *id != "null");
            assert_eq!(found, object.id.map(RawValue::get));
        }
    }
    assert!(expected.next().is_none());
});
