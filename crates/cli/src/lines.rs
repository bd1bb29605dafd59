//! JSON lines in, JSON lines out: in order, in parallel, with bounded memory.

use std::io::{BufRead, Write};
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// Lines that are in memory at a time, unless their bytes reach the limit
/// first.
const MAX_BATCH_LINES: usize = 2048;

/// Bytes of lines that are in memory at a time; one longer line still passes.
const MAX_BATCH_BYTES: usize = 64 << 20;

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
        let batch = read_batch(reader.as_mut()).map_err(|error| unreadable_file(file, &error))?;
        if batch.is_empty() {
            break;
        }
        let answers: Vec<_> = batch
            .par_iter()
            .map(|line| match answer(line) {
                Ok(answer) => (to_line(&answer), false),
                Err(Unreadable { id, message }) => {
                    let line = UnreadableLine {
                        id: &id,
                        error: "unreadable",
                        message: &message,
                    };
                    (to_line(&line), true)
                }
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

fn read_batch(reader: &mut dyn BufRead) -> std::io::Result<Vec<Vec<u8>>> {
    let mut batch = Vec::new();
    let mut num_bytes = 0;
    while batch.len() < MAX_BATCH_LINES && num_bytes < MAX_BATCH_BYTES {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        num_bytes += line.len();
        batch.push(line);
    }
    Ok(batch)
}
