//! The command `grade`: how much of an answer is right?

use std::io::Write;

use asyncthink_tasks::{Grade, Task};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::args::GradeArgs;
use crate::failure::Failure;
use crate::lines::{self, Id, Line, Unreadable};

/// A line of the input.
#[derive(Deserialize)]
struct AnswerLine<'a> {
    #[serde(default)]
    id: Id,
    #[serde(borrow)]
    problem: &'a RawValue,
    answer: String,
}

/// A line of the output.
#[derive(Serialize)]
struct GradeLine {
    id: Id,
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

fn answer(task: &dyn Task, line: &Line) -> Result<GradeLine, Unreadable> {
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
            message: {
                // The problem is a part of the line.
                let start = problem.get().as_ptr().addr();
                let start = start.saturating_sub(line.bytes.as_ptr().addr());
                lines::message_at(&error, line.number, start, problem.get().len())
            },
        }),
    }
}
