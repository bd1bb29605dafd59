use std::path::Path;

use asyncthink_tasks::Problem;

use super::table::{self, Columns};
use crate::{Error, Result};

const KIND: &str = "problems";

/// Writes problems, in order. Each is kept as the JSON that the `grade` command reads, beside its task's name.
///
/// # Errors
/// A problem cannot be written as JSON, or the file cannot be written.
pub fn write_problems(path: &Path, problems: &[Problem]) -> Result<()> {
    let json = problems
        .iter()
        .map(to_json)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::WriteParquet {
            path: path.to_path_buf(),
            message: error.to_string(),
        })?;
    Columns::new()
        .u64s("index", (0..).take(problems.len()))
        .strings("task", problems.iter().map(Problem::task_name))
        .strings("problem", json.iter().map(String::as_str))
        .write(path, KIND)
}

/// Reads problems, in order.
///
/// # Errors
/// The file cannot be read, is damaged, holds other rows, or a problem is of an unknown task or form.
pub fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    table::read(path, KIND, |batch| {
        let (tasks, problems) = (batch.strings("task")?, batch.strings("problem")?);
        tasks
            .iter()
            .zip(&problems)
            .enumerate()
            .map(|(row, (task, json))| {
                from_json(task, json).map_err(|message| batch.row_error(row, message))
            })
            .collect()
    })
}

fn to_json(problem: &Problem) -> serde_json::Result<String> {
    match problem {
        Problem::Mcd(problem) => serde_json::to_string(problem),
        // A task that this crate does not know keeps its own form.
        other => serde_json::to_string(other),
    }
}

fn from_json(task: &str, json: &str) -> Result<Problem, String> {
    match task {
        "mcd" => serde_json::from_str(json)
            .map(Problem::Mcd)
            .map_err(|error| error.to_string()),
        _ => Err(format!("unknown task `{task}`")),
    }
}
