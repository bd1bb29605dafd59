//! Model output as text that cannot drive a terminal.

/// Bytes to text, piece by piece: the beginning of a character waits for the
/// rest of it.
#[derive(Debug, Default)]
pub(crate) struct Utf8Pieces {
    held: Vec<u8>,
}

impl Utf8Pieces {
    /// The text that `bytes` complete, with U+FFFD for what is not UTF-8.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut at = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            at += chunk.valid().len();
            let invalid = chunk.invalid();
            let is_last = at + invalid.len() == self.held.len();
            if invalid.is_empty() || (is_last && is_beginning(invalid)) {
                continue;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            at += invalid.len();
        }
        self.held.drain(..at);
        text
    }

    /// What stands for a character whose rest never came.
    pub(crate) fn finish(&mut self) -> &'static str {
        if self.held.is_empty() {
            return "";
        }
        self.held.clear();
        "\u{fffd}"
    }
}

/// Whether more bytes could make this a character.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Appends a character as it may be shown.
pub(crate) fn push_visible(text: &mut String, c: char) {
    match c {
        '\t' => text.push_str("    "),
        c if drives_terminal(c) => text.extend(c.escape_default()),
        c => text.push(c),
    }
}

/// Text as it may be shown, in one line.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        push_visible(&mut shown, c);
    }
    shown
}

/// JSON as it may be shown: the same value, with escapes for what serde writes
/// as it is. In JSON such characters can only stand in strings.
pub(crate) fn visible_json(json: &str) -> String {
    use std::fmt::Write as _;
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if drives_terminal(c) {
            // Writing to a string cannot fail, and all of them are below U+10000.
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Control characters (C0, DEL, C1), line separators, and those that change the
/// direction of what is around them.
fn drives_terminal(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of `bytes` given in pieces of `size`.
    fn in_pieces(bytes: &[u8], size: usize) -> String {
        let mut pieces = Utf8Pieces::default();
        let mut text = String::new();
        for piece in bytes.chunks(size) {
            text += &pieces.push(piece);
        }
        text + pieces.finish()
    }

    #[test]
    fn any_cut_gives_the_text_of_the_whole() {
        for bytes in [
            "a\u{e9}\u{20ac}\u{1f600}z".as_bytes(),
            b"a\xe2\x82",
            b"a\xe2\x82z\xff\xc3",
            b"\xf0\x9f\x98a\x80\x80\xed\xa0\x80",
            b"",
        ] {
            for size in 1..=5 {
                assert_eq!(
                    in_pieces(bytes, size),
                    String::from_utf8_lossy(bytes),
                    "{bytes:x?} in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn a_character_is_shown_once_it_is_whole() {
        let mut pieces = Utf8Pieces::default();
        assert_eq!(pieces.push(b"x\xe2\x82"), "x");
        assert_eq!(pieces.push(b"\xacy"), "\u{20ac}y");
        assert_eq!(pieces.finish(), "");
    }

    #[test]
    fn nothing_drives_the_terminal() {
        assert_eq!(
            visible("a\u{1b}[2Jb\u{9b}31m\rc\u{7f}\t\u{202e}\u{e9}"),
            "a\\u{1b}[2Jb\\u{9b}31m\\rc\\u{7f}    \\u{202e}\u{e9}"
        );
        for c in (0..=0x9f).filter_map(char::from_u32) {
            assert!(!visible(&c.to_string()).contains(char::is_control));
        }
    }

    #[test]
    fn escaped_json_is_the_same_value() {
        let value = serde_json::json!({"text": "a\u{1b}\u{9b}\u{7f}\u{202e}\n\u{e9}"});
        let shown = visible_json(&value.to_string());
        assert!(!shown.contains(drives_terminal), "{shown}");
        let read: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(read, value);
    }
}
