//! The command `grade`: how much of an answer is right?

use std::io::Write;

use asyncthink_tasks::{Grade, mcd};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::{GradeArgs, TaskArg};
use crate::failure::Failure;
use crate::lines;

/// A line of the input.
#[derive(Deserialize)]
struct AnswerLine<P> {
    #[serde(default)]
    id: Value,
    problem: P,
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
    let num_unreadable = match args.task {
        TaskArg::Mcd => lines::answer_lines(&args.file, out, |line| {
            let line: AnswerLine<mcd::Problem> = lines::parse(line)?;
            Ok(GradeLine {
                id: line.id,
                grade: mcd::grade(&line.problem, &line.answer),
            })
        })?,
    };
    lines::unreadable_lines(
        &args.file,
        num_unreadable,
        "with `id`, `problem` and `answer`",
    )
}
