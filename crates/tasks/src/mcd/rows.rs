//! The released rows: `{"index", "target", "available_numbers", "solutions"}`, one JSON object per line.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use super::grade::check_solution;
use super::key::DifferenceKey;
use super::problem::{Problem, Rules};
use crate::Error;
use crate::grade::Reason;

/// A row of the public data set `CZWin32768/multi-solution-countdown`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Number of the row in its split.
    pub index: i64,
    /// The target.
    pub target: i64,
    /// The pool.
    pub available_numbers: Vec<i64>,
    /// Some different solutions; the released rows have four.
    #[serde(default)]
    pub solutions: Vec<String>,
}

impl Row {
    /// The row as a problem.
    ///
    /// # Errors
    /// As [`Problem::new`].
    pub fn problem(&self, required: usize, rules: Rules) -> Result<Problem, Error> {
        Problem::new(self.target, self.available_numbers.clone(), required, rules)
    }

    /// Checks the stored solutions with the grader: each is right, and no two are the same.
    ///
    /// # Errors
    /// [`Error::WrongStoredSolution`] for the first that fails; [`Error::InvalidProblem`] as [`Row::problem`].
    pub fn verify(&self, rules: Rules) -> Result<(), Error> {
        let problem = self.problem(1, rules)?;
        let mut keys = Vec::new();
        for text in &self.solutions {
            let wrong = |reason| Error::WrongStoredSolution {
                index: self.index,
                text: text.chars().take(64).collect(),
                reason,
            };
            let key = DifferenceKey::of(&check_solution(&problem, text).map_err(wrong)?);
            if keys.contains(&key) {
                return Err(wrong(Reason::Duplicate));
            }
            keys.push(key);
        }
        Ok(())
    }
}

/// Reads rows from JSON lines; blank lines are skipped.
///
/// # Errors
/// [`Error::ReadLine`], or [`Error::ParseRow`] and [`Error::InvalidRow`] with the line that is wrong.
pub fn load_rows(reader: impl BufRead) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for (index, line) in reader.lines().enumerate() {
        let number = index + 1;
        let line = line.map_err(|source| Error::ReadLine {
            line: number,
            source,
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(&line).map_err(|source| Error::ParseRow {
            line: number,
            source,
        })?;
        row.problem(1, Rules::default())
            .map_err(|source| Error::InvalidRow {
                line: number,
                source: Box::new(source),
            })?;
        rows.push(row);
    }
    Ok(rows)
}
