use std::path::Path;

use asyncthink_tasks::{Problem, Task};

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
        .map(Problem::to_json)
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

/// Reads problems of a task, in order.
///
/// # Errors
/// The file cannot be read, is damaged, holds other rows, or a problem is of another task or form.
pub fn read_problems(path: &Path, task: &dyn Task) -> Result<Vec<Problem>> {
    table::read(path, KIND, |batch| {
        let (tasks, problems) = (batch.strings("task")?, batch.strings("problem")?);
        tasks
            .iter()
            .zip(&problems)
            .enumerate()
            .map(|(row, (name, json))| {
                from_json(task, name, json).map_err(|message| batch.row_error(row, message))
            })
            .collect()
    })
}

fn from_json(task: &dyn Task, name: &str, json: &str) -> Result<Problem, String> {
    if name != task.name() {
        return Err(format!("task `{name}`, expected `{}`", task.name()));
    }
    task.read_problem(json).map_err(|error| error.to_string())
}
