//! JSON lines in, JSON lines out: in order, in parallel, with bounded memory.

use std::io::{BufRead, Read as _, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// Lines that are in memory at a time, unless their bytes reach the limit
/// first.
pub(crate) const MAX_BATCH_LINES: usize = 2048;

/// Bytes of lines that are in memory at a time, up to one more line.
pub(crate) const MAX_BATCH_BYTES: usize = 64 << 20;

/// Bytes of the longest line that is read. What comes without a newline, as
/// from a device, would otherwise fill the memory.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Why a line has no answer, and what is known of it.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) id: Value,
    pub(crate) message: String,
}

/// What is written for a line that cannot be read.
#[derive(Serialize)]
struct UnreadableLine<'a> {
    id: &'a Value,
    error: &'static str,
    message: &'a str,
}

/// Answers each line of `file` with `answer`, which must be pure: lines are
/// worked on in parallel. Blank lines are skipped. Gives the number of lines
/// that could not be read.
pub(crate) fn answer_lines<T: Serialize>(
    file: &Path,
    out: &mut dyn Write,
    answer: impl Fn(&[u8]) -> Result<T, Unreadable> + Sync,
) -> Result<u64, Failure> {
    let mut reader = open(file)?;
    let mut num_unreadable = 0;
    loop {
        let batch = read_batch(reader.as_mut(), MAX_LINE_BYTES)
            .map_err(|error| unreadable_file(file, &error))?;
        if batch.is_empty() {
            break;
        }
        let answers: Vec<_> = batch
            .par_iter()
            .map(|line| {
                let answer = line
                    .as_deref()
                    .map_err(|&error| too_long(error))
                    .and_then(&answer);
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

/// The lines of a file or of standard input one by one, for commands that
/// answer several at a time.
pub(crate) struct LineReader {
    file: PathBuf,
    reader: Box<dyn BufRead>,
    num_bytes: u64,
}

impl LineReader {
    pub(crate) fn open(file: &Path) -> Result<Self, Failure> {
        Ok(Self {
            file: file.to_owned(),
            reader: open(file)?,
            num_bytes: 0,
        })
    }

    /// The next line that is not blank.
    pub(crate) fn next_line(&mut self) -> Result<Option<Result<Vec<u8>, Unreadable>>, Failure> {
        let line = read_line(self.reader.as_mut(), MAX_LINE_BYTES)
            .map_err(|error| unreadable_file(&self.file, &error))?;
        Ok(line.map(|line| {
            self.num_bytes += line.as_ref().map_or(MAX_LINE_BYTES, Vec::len) as u64;
            line.map_err(too_long)
        }))
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
/// with the line's id where it has one.
pub(crate) fn parse<'a, T: serde::Deserialize<'a>>(line: &'a [u8]) -> Result<T, Unreadable> {
    // Serde would take an array for a struct.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(Unreadable {
            id: Value::Null,
            message: "not a JSON object".to_owned(),
        });
    }
    serde_json::from_slice(line).map_err(|error| {
        // A second look, for the id only: the line may be JSON of another form.
        let id = serde_json::from_slice::<Value>(line)
            .ok()
            .and_then(|mut value| value.get_mut("id").map(Value::take))
            .unwrap_or_default();
        Unreadable {
            id,
            message: error.to_string(),
        }
    })
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
    if file == Path::new("-") {
        return Ok(Box::new(std::io::stdin().lock()));
    }
    let opened = std::fs::File::open(file).map_err(|error| unreadable_file(file, &error))?;
    Ok(Box::new(std::io::BufReader::with_capacity(1 << 20, opened)))
}

fn unreadable_file(file: &Path, error: &std::io::Error) -> Failure {
    Failure::input(format!("cannot read `{}`", file.display()))
        .cause(error.to_string())
        .hint("give the path of a file of JSON lines, or `-` for standard input")
}

/// A line of more bytes than may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TooLong;

fn too_long(_: TooLong) -> Unreadable {
    Unreadable {
        id: Value::Null,
        message: format!("a line of more than {} MiB", MAX_LINE_BYTES >> 20),
    }
}

fn read_batch(
    reader: &mut dyn BufRead,
    max_line_bytes: usize,
) -> std::io::Result<Vec<Result<Vec<u8>, TooLong>>> {
    let mut batch = Vec::new();
    let mut num_bytes = 0;
    while batch.len() < MAX_BATCH_LINES && num_bytes < MAX_BATCH_BYTES {
        let Some(line) = read_line(reader, max_line_bytes)? else {
            break;
        };
        num_bytes += line.as_ref().map_or(max_line_bytes, Vec::len);
        batch.push(line);
    }
    Ok(batch)
}

/// The next line that is not blank, with its newline.
fn read_line(
    reader: &mut dyn BufRead,
    max_line_bytes: usize,
) -> std::io::Result<Option<Result<Vec<u8>, TooLong>>> {
    loop {
        let mut line = Vec::new();
        // The newline is not counted.
        let limit = max_line_bytes as u64 + 1;
        if (&mut *reader).take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.len() > max_line_bytes && line.last() != Some(&b'\n') {
            reader.skip_until(b'\n')?;
            return Ok(Some(Err(TooLong)));
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some(Ok(line)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_beyond_the_limit_is_passed_over() {
        let mut text: &[u8] = b"12345\n123456\n\n1\n1234567890123\n12\n1234567";
        let line = |text: &[u8]| Ok(text.to_vec());
        assert_eq!(
            read_batch(&mut text, 5).expect("a slice"),
            [
                line(b"12345\n"),
                Err(TooLong),
                line(b"1\n"),
                Err(TooLong),
                line(b"12\n"),
                Err(TooLong),
            ]
        );
        assert!(text.is_empty());
    }
}
