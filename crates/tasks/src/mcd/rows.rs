//! The released rows: `{"index", "target", "available_numbers", "solutions"}`, one JSON object per line.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use super::grade::check_solution;
use super::key::DifferenceKey;
use super::problem::{Problem, Rules};
use super::reason::McdReason;
use crate::error::Error;

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
            let wrong = |reason: McdReason| Error::WrongStoredSolution {
                index: self.index,
                text: text.chars().take(64).collect(),
                reason: reason.into(),
            };
            let key = DifferenceKey::of(&check_solution(&problem, text).map_err(wrong)?);
            if keys.contains(&key) {
                return Err(wrong(McdReason::Duplicate));
            }
            keys.push(key);
        }
        Ok(())
    }
}

/// Reads rows from JSON lines; blank lines and a byte-order mark are skipped. Errors name the line of the file.
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
        let line = match index {
            0 => line.strip_prefix('\u{feff}').unwrap_or(&line),
            _ => &line,
        };
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(line).map_err(|source| Error::ParseRow {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// In the form of the released rows: full parentheses, one negative intermediate.
    const ROWS: &str = concat!(
        r#"{"index": 0, "target": 655, "available_numbers": [5, 8, 13, 26, 31, 42, 50, 55, 60, 65, 78, 87], "solutions": ["((8 * 87) + (13 - 54))"]}"#,
        "\n\n",
        r#"{"index": 1, "target": 120, "available_numbers": [2, 3, 4, 5, 6, 10, 20], "solutions": ["((2 * 3) * 20)", "((4 * 5) * 6)", "((2 - 6) * (20 - (5 * 10)))", "((10 * (20 - 5)) - ((6 * 4) + (2 * 3)))"]}"#,
        "\n",
    );

    #[test]
    fn rows_load_and_are_verified() {
        let rows = load_rows(ROWS.as_bytes()).unwrap();
        assert_eq!(rows.len(), 2);
        rows[1]
            .verify(Rules {
                min_numbers: 3,
                max_numbers: 7,
            })
            .unwrap();
        let error = rows[0].verify(Rules::default()).unwrap_err().to_string();
        assert_eq!(
            error,
            "row 0: stored solution `((8 * 87) + (13 - 54))` is wrong: number_not_available"
        );
        let error = rows[1].verify(Rules::default()).unwrap_err().to_string();
        assert!(error.ends_with("too_many_numbers"), "{error}");
        let problem = rows[1].problem(4, Rules::default()).unwrap();
        assert_eq!((problem.target, problem.required), (120, 4));
    }

    #[test]
    fn a_repeated_solution_is_an_error() {
        let row = Row {
            index: 7,
            target: 24,
            available_numbers: vec![2, 3, 4],
            solutions: vec!["(2 * 3) * 4".to_owned(), "4 * (3 * 2)".to_owned()],
        };
        let error = row.verify(Rules::default()).unwrap_err().to_string();
        assert_eq!(
            error,
            "row 7: stored solution `4 * (3 * 2)` is wrong: duplicate"
        );
    }

    #[test]
    fn bad_lines_are_named() {
        let marked = format!("\u{feff}{ROWS}");
        assert_eq!(load_rows(marked.as_bytes()).unwrap().len(), 2);
        let error = load_rows(format!("{ROWS}not json").as_bytes()).unwrap_err();
        assert!(matches!(error, Error::ParseRow { line: 4, .. }), "{error}");
        let empty = r#"{"index": 0, "target": 1, "available_numbers": []}"#;
        let error = load_rows(empty.as_bytes()).unwrap_err();
        assert!(
            matches!(error, Error::InvalidRow { line: 1, .. }),
            "{error}"
        );
        let error = load_rows(&b"\xff\n"[..]).unwrap_err();
        assert!(matches!(error, Error::ReadLine { line: 1, .. }), "{error}");
    }
}
