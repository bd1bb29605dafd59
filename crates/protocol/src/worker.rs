use crate::TagStyle;
use crate::tags::{Feed, RETURN_CLOSE, RETURN_OPEN, Tag, TagMatcher};

/// Recognises the first complete `<RETURN>...</RETURN>` in one worker's decoded bytes.
///
/// The return goes from the first opening tag to the first closing tag after it; every other tag
/// is text. A worker that ends without a complete return returns the empty string.
#[derive(Debug, Clone)]
pub struct WorkerMachine {
    matcher: TagMatcher,
    mode: Mode,
    captured: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Think,
    InReturn,
    Returned,
}

impl Default for WorkerMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl WorkerMachine {
    /// A machine at the beginning of a worker.
    pub fn new() -> Self {
        Self {
            // RETURN has no number, hence one spelling.
            matcher: TagMatcher::new(TagStyle::Plain),
            mode: Mode::Think,
            captured: Vec::new(),
        }
    }

    /// Takes the next decoded bytes; returns the return's content when they complete it, once.
    /// Later bytes are ignored.
    pub fn push(&mut self, bytes: &[u8]) -> Option<String> {
        let mut at = 0;
        while at < bytes.len() && self.mode != Mode::Returned {
            if self.matcher.is_idle() {
                let rest = &bytes[at..];
                let num_text = rest.iter().position(|&byte| byte == b'<');
                let num_text = num_text.unwrap_or(rest.len());
                if self.mode == Mode::InReturn {
                    self.captured.extend_from_slice(&rest[..num_text]);
                }
                at += num_text;
                if at == bytes.len() {
                    break;
                }
            }
            match self.matcher.feed(bytes[at]) {
                Feed::Pending => at += 1,
                Feed::Dead => self.flush_held(),
                Feed::Complete(tag) => {
                    at += 1;
                    match (self.mode, tag) {
                        (Mode::Think, Tag::ReturnOpen) => self.mode = Mode::InReturn,
                        (Mode::InReturn, Tag::ReturnClose) => {
                            self.mode = Mode::Returned;
                            let content = std::mem::take(&mut self.captured);
                            return Some(String::from_utf8_lossy(&content).into_owned());
                        }
                        _ => self.flush_held(),
                    }
                }
            }
        }
        None
    }

    /// Whether the return is complete.
    pub fn is_returned(&self) -> bool {
        self.mode == Mode::Returned
    }

    fn flush_held(&mut self) {
        if self.mode == Mode::InReturn {
            self.captured.extend_from_slice(self.matcher.held());
        }
    }
}

/// What a worker with this whole text returns: its first complete return's content, or nothing.
/// The same as [`WorkerMachine`] on the whole text, without a copy.
pub fn returned_text(text: &str) -> &str {
    let content = text
        .find(RETURN_OPEN)
        .map(|open| &text[open + RETURN_OPEN.len()..]);
    content
        .and_then(|content| content.find(RETURN_CLOSE).map(|close| &content[..close]))
        .unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complete_return_comes_once() {
        let mut machine = WorkerMachine::new();
        assert_eq!(machine.push(b"think</RETURN><RETU"), None);
        assert_eq!(machine.push(b"RN>3 + 4<JOIN1><"), None);
        assert_eq!(machine.push(b"/RETURN>x"), Some("3 + 4<JOIN1>".to_owned()));
        assert!(machine.is_returned());
        assert_eq!(machine.push(b"<RETURN>again</RETURN>"), None);
    }

    #[test]
    fn without_a_complete_return_nothing_is_returned() {
        for text in [
            "",
            "abc",
            "<RETURN>abc",
            "</RETURN>abc<RETURN>",
            "<RETURN-1>a</RETURN>",
        ] {
            assert_eq!(WorkerMachine::new().push(text.as_bytes()), None, "{text}");
            assert_eq!(returned_text(text), "", "{text}");
        }
    }

    #[test]
    fn an_inner_opening_tag_is_text() {
        assert_eq!(
            returned_text("<RETURN>a<RETURN>b</RETURN>c</RETURN>"),
            "a<RETURN>b"
        );
    }
}
