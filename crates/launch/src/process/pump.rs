//! Carries the output of ranks to the console and into files.

use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::console::{Console, Stream};
use super::framer::Framer;
use crate::plan::Sinks;

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 14;

/// The output of a group of ranks on its way.
#[derive(Debug)]
pub(crate) struct Pumps {
    console: Arc<Console>,
    num_running: usize,
    ended: Receiver<()>,
    end: Sender<()>,
}

/// One stream of a rank that the launcher carries, before the rank is started.
#[derive(Debug)]
pub(crate) struct Outlet {
    stream: Stream,
    prefix: String,
    /// File that gets the output too.
    file: Option<fs_err::File>,
}

impl Outlet {
    /// Opens the stream of a rank, with the outlet through which the launcher carries it.
    pub(crate) fn open(
        stream: Stream,
        sinks: Sinks,
        path: PathBuf,
        prefix: &str,
    ) -> io::Result<(Stdio, Option<Self>)> {
        if !sinks.file && !sinks.console {
            return Ok((Stdio::null(), None));
        }
        let file = if sinks.file {
            Some(fs_err::File::create(path)?)
        } else {
            None
        };
        if !sinks.console {
            // The rank writes itself, which outlives the launcher.
            let direct = file.map(|file| Stdio::from(file.into_file()));
            return Ok((direct.unwrap_or_else(Stdio::null), None));
        }
        let outlet = Self {
            stream,
            prefix: prefix.to_owned(),
            file,
        };
        Ok((Stdio::piped(), Some(outlet)))
    }

    fn carry(mut self, mut from: impl Read, console: &Console) {
        let mut framer = Framer::new(&self.prefix);
        let mut buffer = vec![0; READ_BYTES];
        let mut lines = Vec::new();
        loop {
            let num = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(num) => num,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let bytes = buffer.get(..num).unwrap_or_default();
            if let Some(file) = &mut self.file
                && let Err(error) = file.write_all(bytes)
            {
                console.note(&format!("{}no log any more: {error}", self.prefix));
                self.file = None;
            }
            framer.push(bytes, Instant::now(), &mut lines);
            console.write(self.stream, &lines);
            lines.clear();
        }
        framer.finish(&mut lines);
        console.write(self.stream, &lines);
    }
}

impl Pumps {
    pub(crate) fn new(console: Arc<Console>) -> Self {
        let (end, ended) = mpsc::channel();
        Self {
            console,
            num_running: 0,
            ended,
            end,
        }
    }

    /// Begins to carry a stream.
    pub(crate) fn start(
        &mut self,
        outlet: Outlet,
        from: impl Read + Send + 'static,
    ) -> io::Result<()> {
        let console = Arc::clone(&self.console);
        let end = self.end.clone();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                outlet.carry(from, &console);
                let _ = end.send(());
            })?;
        self.num_running += 1;
        Ok(())
    }

    /// Waits until everything has been written that the ranks wrote.
    ///
    /// A program that left its rank's process group may hold a stream open
    /// for ever, so there is a bound.
    pub(crate) fn drain(&mut self, bound: Duration) {
        let until = Instant::now() + bound;
        while self.num_running > 0 {
            let left = until.saturating_duration_since(Instant::now());
            match self.ended.recv_timeout(left) {
                Ok(()) => self.num_running -= 1,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
