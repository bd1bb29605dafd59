//! JSON lines in, JSON lines out: in order, in parallel, with bounded memory.

use std::io::{BufRead, Cursor, Read as _, Write};
use std::path::{Path, PathBuf};

use asyncthink_files::{FileKind, HEAD_BYTES};
use rayon::prelude::*;
use serde::{Deserialize as _, Serialize};
use serde_json::value::RawValue;

use crate::failure::Failure;

/// Lines that are in memory at a time, unless their bytes reach the limit
/// first.
pub(crate) const MAX_BATCH_LINES: usize = 2048;

/// Bytes of lines that are in memory at a time, up to one more line.
pub(crate) const MAX_BATCH_BYTES: usize = 64 << 20;

/// Bytes of the longest line that is read. What comes without a newline, as
/// from a device, would otherwise fill the memory.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Mark that some editors put before text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The `id` of a line, byte for byte as it was written; `None` where the line
/// has none.
pub(crate) type Id = Option<Box<RawValue>>;

/// A line of the input that is not blank.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Line number in the file, from 1.
    pub(crate) number: u64,
    /// Line text, without the newline.
    pub(crate) bytes: Vec<u8>,
}

/// Why a line has no answer, and what is known of it.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) id: Id,
    pub(crate) message: String,
}

/// What is written for a line that cannot be read.
#[derive(Serialize)]
struct UnreadableLine<'a> {
    id: &'a Id,
    error: &'static str,
    message: &'a str,
}

/// Answers each line of `file` with `answer`, which must be pure: lines are
/// worked on in parallel. Blank lines are skipped. Gives the number of lines
/// that could not be read.
pub(crate) fn answer_lines<T: Serialize>(
    file: &Path,
    out: &mut dyn Write,
    answer: impl Fn(&Line) -> Result<T, Unreadable> + Sync,
) -> Result<u64, Failure> {
    let mut reader = LineReader::open(file)?;
    let mut num_unreadable = 0;
    loop {
        let batch = reader.next_batch()?;
        if batch.is_empty() {
            break;
        }
        let answers: Vec<_> = batch
            .par_iter()
            .map(|line| {
                let answer = line.as_ref().map_err(too_long).and_then(&answer);
                (render(&answer), answer.is_err())
            })
            .collect();
        for (line, is_unreadable) in answers {
            num_unreadable += u64::from(is_unreadable);
            out.write_all(&line?)?;
        }
    }
    out.flush()?;
    Ok(num_unreadable)
}

/// A line of the output.
pub(crate) fn render<T: Serialize>(answer: &Result<T, Unreadable>) -> Result<Vec<u8>, Failure> {
    match answer {
        Ok(answer) => to_line(answer),
        Err(Unreadable { id, message }) => to_line(&UnreadableLine {
            id,
            error: "unreadable",
            message,
        }),
    }
}

/// The lines of a file or of standard input.
pub(crate) struct LineReader {
    file: PathBuf,
    lines: Lines,
    num_bytes: u64,
}

impl LineReader {
    /// Opens a file, or standard input for `-`. What is no text is refused, and a byte-order mark is skipped.
    pub(crate) fn open(file: &Path) -> Result<Self, Failure> {
        Ok(Self {
            file: file.to_owned(),
            lines: Lines {
                reader: open(file)?,
                number: 0,
                max_bytes: MAX_LINE_BYTES,
            },
            num_bytes: 0,
        })
    }

    /// The next line that is not blank.
    pub(crate) fn next_line(&mut self) -> Result<Option<Result<Line, Unreadable>>, Failure> {
        let line = self
            .lines
            .next()
            .map_err(|error| unreadable_file(&self.file, &error))?;
        Ok(line.map(|line| {
            self.num_bytes +=
                line.as_ref()
                    .map_or(MAX_LINE_BYTES, |line| line.bytes.len() + 1) as u64;
            line.map_err(|error| too_long(&error))
        }))
    }

    fn next_batch(&mut self) -> Result<Vec<Result<Line, TooLong>>, Failure> {
        self.lines
            .batch()
            .map_err(|error| unreadable_file(&self.file, &error))
    }

    /// Bytes of the lines so far, and of the whole file; `None` where that is
    /// not known, as of a pipe.
    pub(crate) fn progress(&self) -> Option<(u64, u64)> {
        let file = std::fs::metadata(&self.file).ok()?;
        file.is_file()
            .then(|| (self.num_bytes.min(file.len()), file.len()))
    }
}

/// Reads JSON that is not an object with the expected fields as unreadable,
/// with the line's id where it can be read.
pub(crate) fn parse<'a, T: serde::Deserialize<'a>>(line: &'a Line) -> Result<T, Unreadable> {
    let bytes = &line.bytes;
    // Serde would take an array for a struct.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Unreadable {
            id: None,
            message: format!("not a JSON object at line {}", line.number),
        });
    }
    serde_json::from_slice(bytes).map_err(|error| Unreadable {
        id: find_id(bytes),
        message: message_at(&error, line.number, 0, bytes.len()),
    })
}

/// The message of an error in a part of a line, with the place in the file.
/// `start` bytes of the line come before the part, which has `len`.
pub(crate) fn message_at(error: &serde_json::Error, line: u64, start: usize, len: usize) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let (message, column) = match text.strip_suffix(&place) {
        Some(message) => (message, error.column()),
        None => (text.as_str(), len),
    };
    format!("{message} at line {line} column {}", start + column)
}

/// The value of `id` in the outermost object of a line, which need not be JSON otherwise.
fn find_id(line: &[u8]) -> Id {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(byte) = line.get(at) {
        match byte {
            b'"' => {
                let end = string_end(line, at)?;
                let is_id = depth == 1
                    && serde_json::from_slice::<String>(&line[at..end])
                        .is_ok_and(|key| key == "id");
                let value = line[end..].trim_ascii_start().strip_prefix(b":");
                if let (true, Some(value)) = (is_id, value) {
                    let mut reader = serde_json::Deserializer::from_slice(value);
                    return Box::<RawValue>::deserialize(&mut reader).ok();
                }
                at = end;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// One past the quote that closes the string which opens at `start`.
fn string_end(line: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match line.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The failure for a command that answered everything but some lines.
pub(crate) fn unreadable_lines(
    file: &Path,
    num_unreadable: u64,
    form: &str,
) -> Result<(), Failure> {
    if num_unreadable == 0 {
        return Ok(());
    }
    let lines = if num_unreadable == 1 { "line" } else { "lines" };
    Err(Failure::input(format!(
        "{num_unreadable} {lines} of `{}` could not be read; the other lines are answered",
        file.display()
    ))
    .hint(format!("each line is a JSON object {form}")))
}

fn to_line(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let mut line = serde_json::to_vec(value)
        .map_err(|error| Failure::run(format!("cannot write an answer as JSON: {error}")))?;
    line.push(b'\n');
    Ok(line)
}

fn open(file: &Path) -> Result<Box<dyn BufRead>, Failure> {
    let refuse = |kind: FileKind| {
        Failure::input(format!("`{}` is {kind}", file.display())).hint(kind.hint())
    };
    let mut reader: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else if file.is_dir() {
        return Err(refuse(FileKind::Folder));
    } else {
        let opened = std::fs::File::open(file).map_err(|error| unreadable_file(file, &error))?;
        Box::new(std::io::BufReader::with_capacity(1 << 20, opened))
    };
    let mut head = Vec::new();
    (&mut reader)
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|error| unreadable_file(file, &error))?;
    if let Some(kind) = FileKind::of_bytes(&head) {
        return Err(refuse(kind));
    }
    if head.starts_with(BYTE_ORDER_MARK) {
        head.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(Box::new(Cursor::new(head).chain(reader)))
}

fn unreadable_file(file: &Path, error: &std::io::Error) -> Failure {
    Failure::input(format!("cannot read `{}`", file.display()))
        .cause(error.to_string())
        .hint("give the path of a file of JSON lines, or `-` for standard input")
}

/// A line of more bytes than may be read.
#[derive(Debug)]
struct TooLong {
    number: u64,
    /// Id found at the beginning of the line.
    id: Id,
}

fn too_long(TooLong { number, id }: &TooLong) -> Unreadable {
    Unreadable {
        id: id.clone(),
        message: format!("line {number} has more than {} MiB", MAX_LINE_BYTES >> 20),
    }
}

/// Lines with their numbers.
struct Lines {
    reader: Box<dyn BufRead>,
    /// Lines so far, blank ones among them.
    number: u64,
    max_bytes: usize,
}

impl Lines {
    fn batch(&mut self) -> std::io::Result<Vec<Result<Line, TooLong>>> {
        let mut batch = Vec::new();
        let mut num_bytes = 0;
        while batch.len() < MAX_BATCH_LINES && num_bytes < MAX_BATCH_BYTES {
            let Some(line) = self.next()? else {
                break;
            };
            num_bytes += line
                .as_ref()
                .map_or(self.max_bytes, |line| line.bytes.len());
            batch.push(line);
        }
        Ok(batch)
    }

    /// The next line that is not blank.
    fn next(&mut self) -> std::io::Result<Option<Result<Line, TooLong>>> {
        loop {
            let mut bytes = Vec::new();
            // The newline is not counted.
            let limit = self.max_bytes as u64 + 1;
            let reader = &mut self.reader;
            if reader.take(limit).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            let number = self.number;
            if bytes.len() > self.max_bytes && bytes.last() != Some(&b'\n') {
                self.reader.skip_until(b'\n')?;
                let id = find_id(&bytes);
                return Ok(Some(Err(TooLong { number, id })));
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                bytes.truncate(bytes.trim_ascii_end().len());
                return Ok(Some(Ok(Line { number, bytes })));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_beyond_the_limit_is_passed_over() {
        let text = "12345\n123456\n\n1\r\n{\"id\": 7, \"x\": 1}\n12\n1234567";
        let mut lines = Lines {
            reader: Box::new(text.as_bytes()),
            number: 0,
            max_bytes: 5,
        };
        let got: Vec<String> = lines
            .batch()
            .expect("a slice")
            .into_iter()
            .map(|line| match line {
                Ok(Line { number, bytes }) => {
                    format!("{number}: {}", String::from_utf8(bytes).expect("text"))
                }
                Err(TooLong { number, .. }) => format!("{number} is too long"),
            })
            .collect();
        assert_eq!(
            got,
            [
                "1: 12345",
                "2 is too long",
                "4: 1",
                "5 is too long",
                "6: 12",
                "7 is too long"
            ]
        );
    }

    #[test]
    fn the_id_of_a_broken_line_is_found() {
        for (line, id) in [
            (r#"{"id":"c" "input_ids":[1]}"#, Some(r#""c""#)),
            (
                r#"{"x": [1,, 2], "id": 18446744073709551616, ..."#,
                Some("18446744073709551616"),
            ),
            (
                r#"{"x" 1 "id":{"a": [1.0, "\u00e9}"]}"#,
                Some(r#"{"a": [1.0, "\u00e9}"]}"#),
            ),
            (r#"{"x": {"id": 1}, "\u0069d": -0.50e1"#, Some("-0.50e1")),
            (
                r#"{"x": "id", "y": "\"id\": 3", "id" : null, "#,
                Some("null"),
            ),
            (r#"{"id": nul"#, None),
            (r#"{"id": "open"#, None),
            (r#"{"x": "\"#, None),
            (r#"[{"id": 1}]"#, None),
            ("", None),
        ] {
            let found = find_id(line.as_bytes());
            assert_eq!(found.as_deref().map(RawValue::get), id, "{line}");
        }
    }
}
