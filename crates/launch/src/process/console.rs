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
    /// Why standard output was given up, unless nobody reads it any more.
    output_error: Option<io::Error>,
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
                output_error: None,
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
        let Some(writer) = sink else {
            return;
        };
        if let Err(error) = writer.write_all(lines).and_then(|()| writer.flush()) {
            *sink = None;
            if stream == Stream::Out && error.kind() != io::ErrorKind::BrokenPipe {
                sinks.output_error = Some(error);
            }
        }
    }

    /// Why lines of ranks could not be written to standard output, if it was not that nobody reads it any more.
    pub fn take_output_error(&self) -> Option<io::Error> {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.output_error.take()
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

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_given_up_and_the_other_stays() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let console = Console::new(Failing(io::ErrorKind::BrokenPipe), writer);
        console.write(Stream::Out, b"lost\n");
        console.write(Stream::Out, b"lost\n");
        console.note("one\ntwo");
        assert!(console.take_output_error().is_none());
        drop(console);
        let text = io::read_to_string(reader).expect("text");
        assert_eq!(text, "[launch] one\n[launch]   two\n");
    }

    #[test]
    fn a_full_device_is_told_and_standard_error_is_nobodys_output() {
        let full = || Failing(io::ErrorKind::StorageFull);
        let console = Console::new(full(), full());
        console.note("lost");
        assert!(console.take_output_error().is_none());
        console.write(Stream::Out, b"lost\n");
        let error = console.take_output_error().expect("an error");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
