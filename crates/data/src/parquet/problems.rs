use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::table::{self, Columns};
use crate::{Error, Result};

const KIND: &str = "problems";

/// Writes problems of one task, in order. Each is kept as the JSON that the `grade` command reads.
///
/// # Errors
/// A problem cannot be written as JSON, or the file cannot be written.
pub fn write_problems<P: Serialize>(path: &Path, task: &str, problems: &[P]) -> Result<()> {
    let json = problems
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::WriteParquet {
            path: path.to_path_buf(),
            message: error.to_string(),
        })?;
    Columns::new()
        .u64s("index", (0..).take(problems.len()))
        .strings("task", problems.iter().map(|_| task))
        .strings("problem", json.iter().map(String::as_str))
        .write(path, KIND)
}

/// Reads the problems of a task, in order.
///
/// # Errors
/// The file cannot be read, is damaged, holds other rows, or a problem is of another task or form.
pub fn read_problems<P: DeserializeOwned>(path: &Path, task: &str) -> Result<Vec<P>> {
    table::read(path, KIND, |batch| {
        let (tasks, problems) = (batch.strings("task")?, batch.strings("problem")?);
        let parse = |(row, (found, json)): (usize, (String, String))| {
            if found != task {
                return Err(batch.row_error(
                    row,
                    format!("a problem of task `{found}`, expected `{task}`"),
                ));
            }
            serde_json::from_str(&json).map_err(|error| batch.row_error(row, error.to_string()))
        };
        tasks
            .into_iter()
            .zip(problems)
            .enumerate()
            .map(parse)
            .collect()
    })
}
