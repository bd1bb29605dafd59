//! The console that all ranks of a node share.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// Standard output or standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// Where the lines of ranks and launcher go, whole and one at a time.
pub struct Console {
    sinks: Mutex<Sinks>,
}

/// One lock over both, because both are often one terminal. A sink that
/// cannot be written to is given up: a closed pipe must not end a training.
struct Sinks {
    out: Option<Box<dyn Write + Send>>,
    err: Option<Box<dyn Write + Send>>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// A console over any two sinks; the launcher's own lines go to `err`.
    pub fn new(out: impl Write + Send + 'static, err: impl Write + Send + 'static) -> Self {
        Self {
            sinks: Mutex::new(Sinks {
                out: Some(Box::new(out)),
                err: Some(Box::new(err)),
            }),
        }
    }

    /// The console of this process. Nothing else may hold the lock on its
    /// standard output or standard error.
    pub fn standard() -> Self {
        Self::new(io::stdout(), io::stderr())
    }

    /// Writes whole lines.
    pub(crate) fn write(&self, stream: Stream, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        let sink = match stream {
            Stream::Out => &mut sinks.out,
            Stream::Err => &mut sinks.err,
        };
        if let Some(writer) = sink {
            let written = writer.write_all(lines).and_then(|()| writer.flush());
            if written.is_err() {
                *sink = None;
            }
        }
    }

    /// A line of the launcher itself.
    pub(crate) fn note(&self, text: &str) {
        let line = format!("[launch] {}\n", text.replace('\n', "\n[launch]   "));
        self.write(Stream::Err, line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_given_up_and_the_other_stays() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let console = Console::new(Closed, writer);
        console.write(Stream::Out, b"lost\n");
        console.write(Stream::Out, b"lost\n");
        console.note("one\ntwo");
        drop(console);
        let text = io::read_to_string(reader).expect("text");
        assert_eq!(text, "[launch] one\n[launch]   two\n");
    }
}
