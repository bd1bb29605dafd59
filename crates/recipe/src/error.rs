//! Recipe errors: each with its place, key, value, reason and remedy, and all
//! of them at once.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::source::Source;

/// What is wrong, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The recipe file cannot be read.
    Unreadable,
    /// The text is not TOML.
    Syntax,
    /// A `--set` argument has no `key=value` form or no place in the recipe.
    Override,
    /// No such key.
    UnknownKey,
    /// The value has another type than the key takes.
    WrongType,
    /// The value is outside the key's limits or names no choice.
    OutOfRange,
    /// A key without a default is absent.
    MissingKey,
    /// Two keys that cannot both be, or two values that contradict each other.
    Conflict,
    /// A file or folder that the recipe names is not there.
    MissingFile,
}

/// One thing wrong with a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeError {
    kind: ErrorKind,
    key: String,
    value: Option<String>,
    reason: String,
    hint: String,
    /// Whether `value` is the key's default and not written anywhere.
    pub(crate) is_default: bool,
    pub(crate) source: Source,
    place: Place,
}

/// Where an error is, for a reader.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// Not resolved yet.
    Unresolved,
    /// The whole file.
    File,
    /// A position in the file, 1-based; `text` is that line and `width` the
    /// number of characters to underline.
    Line {
        line: usize,
        column: usize,
        width: usize,
        text: String,
    },
    /// A `--set` argument, as typed.
    Argument(String),
}

impl RecipeError {
    pub(crate) fn new(
        kind: ErrorKind,
        source: Source,
        key: impl Into<String>,
        value: Option<String>,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            key: key.into(),
            value,
            reason: reason.into(),
            hint: hint.into(),
            is_default: false,
            source,
            place: Place::Unresolved,
        }
    }

    /// What is wrong, in one word.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The dotted key, or the empty string where no key is concerned.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value as written or by default, where there is one.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// Why it is wrong.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What to do about it.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// The 1-based line in the file, where the error is on one.
    pub fn line(&self) -> Option<usize> {
        match self.place {
            Place::Line { line, .. } => Some(line),
            _ => None,
        }
    }

    /// The 1-based column in characters, where the error is on a line.
    pub fn column(&self) -> Option<usize> {
        match self.place {
            Place::Line { column, .. } => Some(column),
            _ => None,
        }
    }

    pub(crate) fn resolve(&mut self, text: &str, sets: &[String]) {
        self.place = match &self.source {
            Source::Root => Place::File,
            Source::Set(index) => Place::Argument(sets.get(*index).cloned().unwrap_or_default()),
            Source::Text(span) => line_place(text, span.start, span.end),
        };
    }

    fn order(&self) -> (u8, usize) {
        match &self.source {
            Source::Root => (0, 0),
            Source::Text(span) => (1, span.start),
            Source::Set(index) => (2, *index),
        }
    }

    fn write(&self, out: &mut impl fmt::Write, file: &Path) -> fmt::Result {
        let file = file.display();
        match (self.key.is_empty(), &self.value) {
            (false, Some(value)) => {
                let origin = if self.is_default {
                    " (the default)"
                } else {
                    ""
                };
                write!(
                    out,
                    "error: `{}` = `{value}`{origin}: {}",
                    self.key, self.reason
                )?;
            }
            (false, None) => write!(out, "error: `{}`: {}", self.key, self.reason)?,
            (true, _) => write!(out, "error: {}", self.reason)?,
        }
        match &self.place {
            Place::Unresolved | Place::File => writeln!(out, "\n  --> {file}")?,
            Place::Argument(argument) => writeln!(out, "\n  --> --set {argument}")?,
            Place::Line {
                line,
                column,
                width,
                text,
            } => {
                let margin = " ".repeat(line.to_string().len());
                let indent = " ".repeat(column - 1);
                let marks = "^".repeat(*width);
                writeln!(out, "\n{margin} --> {file}:{line}:{column}")?;
                writeln!(out, "{margin} |")?;
                writeln!(out, "{line} | {text}")?;
                writeln!(out, "{margin} | {indent}{marks}")?;
            }
        }
        write!(out, "\nhint: {}", self.hint)
    }
}

/// Line, column and underlined width of a byte range; a range over several
/// lines is marked to the end of its first.
fn line_place(text: &str, start: usize, end: usize) -> Place {
    let start = floor_char_boundary(text, start);
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let end = floor_char_boundary(text, end).clamp(start, line_end);
    Place::Line {
        line: text[..start].matches('\n').count() + 1,
        column: text[line_start..start].chars().count() + 1,
        width: text[start..end].trim_end().chars().count().max(1),
        text: text[line_start..line_end].trim_end().replace('\t', " "),
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Everything that is wrong with a recipe, in the order of the file.
///
/// `Display` gives the whole report: for each error a line `error:`, the place
/// with the line of the file, and a line `hint:`.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeErrors {
    file: PathBuf,
    errors: Vec<RecipeError>,
}

impl RecipeErrors {
    /// Resolves places and sorts. `errors` must not be empty.
    pub(crate) fn new(
        file: &Path,
        text: &str,
        sets: &[String],
        mut errors: Vec<RecipeError>,
    ) -> Self {
        errors.sort_by_key(RecipeError::order);
        for error in &mut errors {
            error.resolve(text, sets);
        }
        Self {
            file: file.to_path_buf(),
            errors,
        }
    }

    /// The recipe file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Each error.
    pub fn errors(&self) -> &[RecipeError] {
        &self.errors
    }
}

impl fmt::Display for RecipeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            let mut block = String::new();
            error.write(&mut block, &self.file)?;
            f.write_str(&block)?;
        }
        if self.errors.len() > 1 {
            let mut count = String::new();
            write!(
                count,
                "\n\nerror: `{}` has {} errors",
                self.file.display(),
                self.errors.len()
            )?;
            f.write_str(&count)?;
        }
        Ok(())
    }
}

impl std::error::Error for RecipeErrors {}
