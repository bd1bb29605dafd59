//! Cuts a stream into lines for a console that several streams share.

use std::time::{Duration, Instant};

/// Longest line; a longer one becomes several.
const MAX_LINE_BYTES: usize = 1 << 16;

/// How often a line that overwrites itself is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Puts a prefix before every line of a stream of bytes.
///
/// A carriage return begins the line anew, as on a terminal: what it
/// overwrites is shown at most once a second, what stays at the end always.
#[derive(Debug)]
pub(crate) struct Framer {
    prefix: Vec<u8>,
    line: Vec<u8>,
    /// A carriage return that may be half of a line's end.
    is_returned: bool,
    shown_progress: Option<Instant>,
}

impl Framer {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.as_bytes().to_vec(),
            line: Vec::new(),
            is_returned: false,
            shown_progress: None,
        }
    }

    /// Adds bytes that came at `now`, and appends every line that they
    /// complete to `out`.
    pub(crate) fn push(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<u8>) {
        for &byte in bytes {
            match byte {
                b'\n' => self.emit(out),
                b'\r' => self.is_returned = true,
                byte => {
                    self.overwrite(now, out);
                    self.line.push(byte);
                    if self.line.len() == MAX_LINE_BYTES {
                        self.emit(out);
                    }
                }
            }
        }
    }

    /// Appends a last line that has no end.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.line.is_empty() {
            self.emit(out);
        }
    }

    /// Begins the line anew after a carriage return.
    fn overwrite(&mut self, now: Instant, out: &mut Vec<u8>) {
        if !std::mem::take(&mut self.is_returned) {
            return;
        }
        let is_due = self
            .shown_progress
            .is_none_or(|shown| now.saturating_duration_since(shown) >= PROGRESS_INTERVAL);
        if is_due && !self.line.is_empty() {
            self.shown_progress = Some(now);
            self.emit(out);
        }
        self.line.clear();
    }

    fn emit(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(&self.line);
        out.push(b'\n');
        self.line.clear();
        self.is_returned = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(pieces: &[&[u8]]) -> String {
        let now = Instant::now();
        let mut framer = Framer::new("> ");
        let mut out = Vec::new();
        for piece in pieces {
            framer.push(piece, now, &mut out);
        }
        framer.finish(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn lines_get_a_prefix() {
        assert_eq!(framed(&[b"a\nb", b"c\n\nd"]), "> a\n> bc\n> \n> d\n");
        assert_eq!(framed(&[]), "");
    }

    #[test]
    fn a_carriage_return_overwrites() {
        assert_eq!(framed(&[b"a\r\nb\r", b"\nc"]), "> a\n> b\n> c\n");
        // The first state is shown, then only the last of the second.
        assert_eq!(framed(&[b"1%\r2%\r3%\r4%\nx"]), "> 1%\n> 4%\n> x\n");
        assert_eq!(framed(&[b"1%\r2%\r3%\r"]), "> 1%\n> 3%\n");
        assert_eq!(framed(&[b"\r\r\ra\n"]), "> a\n");
    }

    #[test]
    fn progress_is_shown_once_a_second() {
        let start = Instant::now();
        let mut framer = Framer::new("");
        let mut out = Vec::new();
        for tenths in 0..25 {
            let now = start + Duration::from_millis(100 * tenths);
            framer.push(format!("{tenths}\r").as_bytes(), now, &mut out);
        }
        assert_eq!(out, b"0\n10\n20\n");
    }

    #[test]
    fn long_lines_are_cut_and_other_bytes_pass() {
        let text = framed(&[&vec![b'x'; MAX_LINE_BYTES + 1]]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[1]), (2, "> x"));
        let mut out = Vec::new();
        let mut framer = Framer::new("");
        framer.push(b"\xff\x00\xfe\n", Instant::now(), &mut out);
        assert_eq!(out, b"\xff\x00\xfe\n");
    }

    proptest! {
        #[test]
        fn cuts_between_reads_change_nothing(text in "[ab\r\n]{0,24}", cut in 0_usize..24) {
            let bytes = text.as_bytes();
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(framed(&[head, tail]), framed(&[bytes]));
        }
    }
}
