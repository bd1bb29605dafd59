//! The file in which a rank leaves the reason of its failure, in the JSON
//! form of torchelastic, so that this launcher and torchrun read the same.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest error file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Longest message that is kept of it.
const MAX_MESSAGE_BYTES: usize = 2048;

#[derive(Serialize)]
struct ErrorFile<'a> {
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    message: &'a str,
    #[serde(rename = "extraInfo")]
    extra_info: ExtraInfo<'a>,
}

/// torchelastic reads `timestamp`, whole seconds as text, and shows
/// `py_callstack` in place of the message.
#[derive(Serialize)]
struct ExtraInfo<'a> {
    py_callstack: &'a str,
    timestamp: String,
    timestamp_millis: u64,
    exit_code: u8,
}

/// Writes a rank's reason for failing, with the time of writing and the exit code with which the rank is going to end.
///
/// The file is there with its whole content or not at all.
///
/// # Errors
/// Fails if the folder does not take the file.
pub fn write_error_file(path: &Path, message: &str, exit_code: u8) -> io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let content = ErrorFile {
        message: Message {
            message,
            extra_info: ExtraInfo {
                py_callstack: message,
                timestamp: now.as_secs().to_string(),
                timestamp_millis: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
                exit_code,
            },
        },
    };
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(&content)?)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Contents of an error file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorReport {
    pub(crate) message: String,
    /// Time of the failure, where that is known to better than a second.
    pub(crate) at: Option<SystemTime>,
    /// Exit code with which the rank was about to end.
    pub(crate) exit_code: Option<i32>,
}

/// Parts of an error file that are read: both forms of torchelastic.
#[derive(Deserialize)]
struct Parsed {
    message: Value,
}

/// Reads an error file; `None` where there is none that can be understood.
pub(crate) fn read_error_file(path: &Path) -> Option<ErrorReport> {
    let mut text = Vec::new();
    let file = fs_err::File::open(path).ok()?;
    file.take(MAX_FILE_BYTES).read_to_end(&mut text).ok()?;
    let Parsed { message } = serde_json::from_slice(&text).ok()?;
    let said = message.as_str().or_else(|| message["message"].as_str())?;
    let millis = message["extraInfo"]["timestamp_millis"].as_u64();
    let at =
        millis.and_then(|millis| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)));
    let exit_code = message["extraInfo"]["exit_code"].as_i64();
    Some(ErrorReport {
        message: shown(said),
        at,
        exit_code: exit_code.and_then(|code| i32::try_from(code).ok()),
    })
}

/// A message cut to a bounded length, without what could steer a terminal.
pub(crate) fn shown(message: &str) -> String {
    let mut text = String::new();
    for char in message.trim_end().chars() {
        if text.len() >= MAX_MESSAGE_BYTES {
            text.push_str(" ...");
            break;
        }
        if char.is_control() && char != '\n' {
            text.extend(char.escape_default());
        } else {
            text.push(char);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<ErrorReport> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a file");
        read_error_file(file.path())
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("error.json");
        let before = SystemTime::now();
        write_error_file(&path, "first", 1).expect("written");
        write_error_file(&path, "no \"loss\"\nat step 3", 2).expect("written");
        let report = read_error_file(&path).expect("readable");
        assert_eq!(report.message, "no \"loss\"\nat step 3");
        assert_eq!(report.exit_code, Some(2));
        let at = report.at.expect("a time");
        assert!(
            at + Duration::from_millis(1) >= before,
            "whole milliseconds"
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("a folder").count(),
            1
        );
    }

    #[test]
    fn the_form_is_that_of_torchelastic() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("error.json");
        write_error_file(&path, "why", 1).expect("written");
        let text = std::fs::read_to_string(&path).expect("a file");
        let json: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["message"]["message"], "why");
        assert_eq!(json["message"]["extraInfo"]["py_callstack"], "why");
        let timestamp = json["message"]["extraInfo"]["timestamp"].as_str();
        let secs: u64 = timestamp.expect("text").parse().expect("whole seconds");
        assert!(secs > 1_700_000_000);
    }

    #[test]
    fn files_of_torchelastic_are_read() {
        let report = read(
            r#"{"message": {"message": "ValueError: x", "extraInfo": {"py_callstack": "...", "timestamp": "17"}}}"#,
        );
        let report = report.expect("readable");
        assert_eq!(
            (report.message.as_str(), report.at),
            ("ValueError: x", None)
        );
        let report = read(r#"{"message": "plain", "timestamp": "17"}"#).expect("readable");
        assert_eq!(report.message, "plain");
    }

    #[test]
    fn malformed_files_give_no_message() {
        for text in [
            "",
            "{",
            "[]",
            "{\"message\": 3}",
            "{\"message\": {\"message\": []}}",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read_error_file(Path::new("/nonexistent/error.json")), None);
    }

    #[test]
    fn a_message_is_bounded_and_harmless() {
        assert_eq!(shown("a\u{1b}[2Jb\nc\n"), "a\\u{1b}[2Jb\nc");
        let long = shown(&"ä".repeat(MAX_MESSAGE_BYTES));
        assert!(long.ends_with(" ...") && long.len() < MAX_MESSAGE_BYTES + 8);
    }
}
