//! How a command fails: what is said, and the exit code.

use std::error::Error;
use std::fmt::Write as _;

use asyncthink_recipe::RecipeErrors;

/// The input was wrong: recipe, data or arguments.
const EXIT_INPUT: u8 = 2;

/// The run failed.
const EXIT_RUN: u8 = 1;

/// A signal's exit code is this plus its number.
const EXIT_SIGNAL: i32 = 128;

/// Why a command ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    report: Report,
}

#[derive(Debug)]
enum Report {
    /// Nothing is left to say.
    Silent,
    /// The report is complete as it is.
    Recipe(RecipeErrors),
    Message {
        message: String,
        causes: Vec<String>,
        hint: Option<String>,
    },
}

impl Failure {
    /// The input was wrong.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::message(EXIT_INPUT, message.into())
    }

    /// The run failed.
    pub(crate) fn run(message: impl Into<String>) -> Self {
        Self::message(EXIT_RUN, message.into())
    }

    /// A signal stopped the run, after it saved.
    pub(crate) fn signal(signal: i32) -> Self {
        Self {
            exit: u8::try_from(EXIT_SIGNAL + signal).unwrap_or(EXIT_RUN),
            report: Report::Silent,
        }
    }

    fn message(exit: u8, message: String) -> Self {
        Self {
            exit,
            report: Report::Message {
                message,
                causes: Vec::new(),
                hint: None,
            },
        }
    }

    /// An error with its chain of causes.
    pub(crate) fn of(error: &dyn Error, is_input: bool, hint: Option<String>) -> Self {
        let mut failure = if is_input {
            Self::input(error.to_string())
        } else {
            Self::run(error.to_string())
        };
        let mut said = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // A transparent error, or one that quotes its cause, says it once.
            if !said.contains(&text) {
                failure = failure.cause(&text);
                said = text;
            }
            source = cause.source();
        }
        let system_hint = system_hint(&failure.render()).map(str::to_owned);
        match system_hint.or(hint) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// Converts to an input error: no work has started, so the user can change what it names first.
    pub(crate) fn before_work(mut self) -> Self {
        self.exit = EXIT_INPUT;
        self
    }

    /// Adds a cause.
    pub(crate) fn cause(mut self, text: impl Into<String>) -> Self {
        if let Report::Message { causes, .. } = &mut self.report {
            causes.push(text.into());
        }
        self
    }

    /// Says what to do about it.
    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        if let Report::Message { hint, .. } = &mut self.report {
            *hint = Some(text.into());
        }
        self
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit
    }

    /// What standard error is told; empty for a silent failure.
    pub(crate) fn render(&self) -> String {
        match &self.report {
            Report::Silent => String::new(),
            Report::Recipe(errors) => format!("{errors}\n"),
            Report::Message {
                message,
                causes,
                hint,
            } => {
                let mut text = format!("error: {}\n", indented(message));
                for cause in causes {
                    // Writing to a string cannot fail.
                    let _ = writeln!(text, "  Caused by: {}", indented(cause));
                }
                if let Some(hint) = hint {
                    let _ = writeln!(text, "\nhint: {hint}");
                }
                text
            }
        }
    }
}

/// The message alone, for the other ranks.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.report {
            Report::Silent => Ok(()),
            Report::Recipe(errors) => write!(f, "{errors}"),
            Report::Message { message, .. } => f.write_str(message),
        }
    }
}

/// What to do where the system would not store what was written. Such an error is often handed on as text alone, as another
/// rank's is, so its number in the text tells; the numbers are Linux's.
pub(crate) fn system_hint(text: &str) -> Option<&'static str> {
    const NO_SPACE: &str = "(os error 28)";
    const OVER_QUOTA: &str = "(os error 122)";
    const FILE_TOO_LARGE: &str = "(os error 27)";
    if text.contains(NO_SPACE) || text.contains(OVER_QUOTA) {
        return Some(
            "make room there and give the same command again: what was complete is kept, and it goes on from that",
        );
    }
    text.contains(FILE_TOO_LARGE).then_some(
        "`ulimit -f` or the file system bounds files; raise that and give the same command again: what was complete is \
         kept, and it goes on from that",
    )
}

/// A message of several lines stays one block.
fn indented(message: &str) -> String {
    message.trim_end().replace('\n', "\n    ")
}

impl From<RecipeErrors> for Failure {
    fn from(errors: RecipeErrors) -> Self {
        Self {
            exit: EXIT_INPUT,
            report: Report::Recipe(errors),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // The reader has seen enough: that is no failure.
            return Self {
                exit: 0,
                report: Report::Silent,
            };
        }
        Self::of(&error, false, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl std::fmt::Display for Layer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn causes_are_listed_once() {
        let cause = Layer("disk full", None);
        let quoting = Layer("cannot save: disk full", Some(Box::new(cause)));
        let error = Layer("step 3 failed", Some(Box::new(quoting)));
        let failure = Failure::of(&error, false, Some("make room".to_owned()));
        assert_eq!(
            failure.render(),
            "error: step 3 failed\n  Caused by: cannot save: disk full\n\nhint: make room\n"
        );
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn a_full_disk_has_a_hint_on_every_rank() {
        let full = fs_err::write("/dev/full", b"x").expect_err("it has no room");
        let other = asyncthink_distributed::Error::OtherRank {
            rank: 1,
            message: full.to_string(),
            is_input: false,
        };
        for error in [asyncthink_trainer::Error::from(full), other.into()] {
            let text = Failure::from(error).render();
            assert!(text.contains("`/dev/full`: No space left"), "{text}");
            assert!(text.contains("\n\nhint: make room there"), "{text}");
        }
    }

    #[test]
    fn a_closed_pipe_and_a_signal_say_nothing() {
        let closed = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let failure = Failure::from(closed);
        assert_eq!((failure.exit_code(), failure.render()), (0, String::new()));
        let failure = Failure::signal(15);
        assert_eq!(
            (failure.exit_code(), failure.render()),
            (143, String::new())
        );
    }
}
