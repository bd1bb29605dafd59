//! The command `grade`: how much of an answer is right?

use std::io::Write;

use asyncthink_tasks::{Grade, Task};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::args::GradeArgs;
use crate::failure::Failure;
use crate::lines::{self, Unreadable};

/// A line of the input.
#[derive(Deserialize)]
struct AnswerLine<'a> {
    #[serde(default)]
    id: Value,
    #[serde(borrow)]
    problem: &'a RawValue,
    answer: String,
}

/// A line of the output.
#[derive(Serialize)]
struct GradeLine {
    id: Value,
    #[serde(flatten)]
    grade: Grade,
}

pub(crate) fn run(args: &GradeArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let num_unreadable = lines::answer_lines(&args.file, out, |line| answer(args.task.0, line))?;
    lines::unreadable_lines(
        &args.file,
        num_unreadable,
        "with `id`, `problem` and `answer`",
    )
}

fn answer(task: &dyn Task, line: &[u8]) -> Result<GradeLine, Unreadable> {
    let AnswerLine {
        id,
        problem,
        answer,
    } = lines::parse(line)?;
    match task.read_problem(problem.get()) {
        Ok(problem) => Ok(GradeLine {
            id,
            grade: problem.grade(&answer),
        }),
        Err(error) => Err(Unreadable {
            id,
            message: message_in_line(&error, problem.get(), line),
        }),
    }
}

/// The message of an error in the problem, with its column in the whole line.
fn message_in_line(error: &serde_json::Error, problem: &str, line: &[u8]) -> String {
    // The problem is a part of the line.
    let start = problem.as_ptr().addr().saturating_sub(line.as_ptr().addr());
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let (message, column) = match text.strip_suffix(&place) {
        Some(message) => (message, error.column()),
        None => (text.as_str(), problem.len()),
    };
    format!("{message} at line 1 column {}", start + column)
}
