use serde::{Deserialize, Serialize};

use crate::SubQueryId;

/// Opens the organizer's final answer.
pub const ANSWER_OPEN: &str = "<ANSWER>";
/// Closes the organizer's final answer.
pub const ANSWER_CLOSE: &str = "</ANSWER>";
/// Opens what a worker returns.
pub const RETURN_OPEN: &str = "<RETURN>";
/// Closes what a worker returns.
pub const RETURN_CLOSE: &str = "</RETURN>";

/// How the number is joined to FORK and JOIN. The paper has both spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TagStyle {
    /// `<FORK1>`, as in the paper's Appendix B.
    #[default]
    Plain,
    /// `<FORK-1>`, as in the paper's section 2.
    Hyphen,
}

impl TagStyle {
    fn separator(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Hyphen => "-",
        }
    }

    /// `<FORK1>` or `<FORK-1>`.
    pub fn fork_open(self, id: SubQueryId) -> String {
        format!("<FORK{}{id}>", self.separator())
    }

    /// `</FORK1>` or `</FORK-1>`.
    pub fn fork_close(self, id: SubQueryId) -> String {
        format!("</FORK{}{id}>", self.separator())
    }

    /// `<JOIN1>` or `<JOIN-1>`, which the organizer decodes.
    pub fn join_open(self, id: SubQueryId) -> String {
        format!("<JOIN{}{id}>", self.separator())
    }

    /// `</JOIN1>` or `</JOIN-1>`, which the runtime appends after the returned text.
    pub fn join_close(self, id: SubQueryId) -> String {
        format!("</JOIN{}{id}>", self.separator())
    }
}

/// A complete tag of the language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    ForkOpen(SubQueryId),
    ForkClose(SubQueryId),
    JoinOpen(SubQueryId),
    JoinClose,
    AnswerOpen,
    AnswerClose,
    ReturnOpen,
    ReturnClose,
}

/// The longest tag is `</FORK-4294967295>`.
const MAX_TAG_BYTES: usize = 18;

/// Digits of the largest id, `u32::MAX`.
const MAX_ID_DIGITS: usize = 10;

/// What one more byte does to a tag that may be beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    /// The bytes held so far, this one included, may still become a tag.
    Pending,
    /// This byte completes a tag, whose bytes are in [`TagMatcher::held`] until the next feed.
    Complete(Tag),
    /// The bytes held before this one are text, and so is this one unless it is `<`, which the
    /// caller feeds again. The text is in [`TagMatcher::held`] until the next feed.
    Dead,
}

/// Recognises one tag byte by byte. `<` occurs in a tag only as its first byte, so a byte that does
/// not fit turns everything held into text at once: nothing is ever read twice, and never more
/// than [`MAX_TAG_BYTES`] bytes are held.
#[derive(Debug, Clone)]
pub(crate) struct TagMatcher {
    style: TagStyle,
    bytes: [u8; MAX_TAG_BYTES],
    len: usize,
    is_settled: bool,
}

impl TagMatcher {
    pub(crate) fn new(style: TagStyle) -> Self {
        Self {
            style,
            bytes: [0; MAX_TAG_BYTES],
            len: 0,
            is_settled: true,
        }
    }

    /// Whether no tag is beginning, so that the next byte of interest is `<`.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_settled
    }

    pub(crate) fn held(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Takes one byte; the first after a settled tag must be `<`.
    pub(crate) fn feed(&mut self, byte: u8) -> Feed {
        if self.is_settled {
            debug_assert_eq!(byte, b'<', "a tag begins with `<`");
            self.len = 0;
            self.is_settled = false;
        }
        if self.len < MAX_TAG_BYTES {
            self.bytes[self.len] = byte;
            match classify(&self.bytes[..=self.len], self.style) {
                Shape::Prefix => {
                    self.len += 1;
                    return Feed::Pending;
                }
                Shape::Tag(tag) => {
                    self.len += 1;
                    self.is_settled = true;
                    return Feed::Complete(tag);
                }
                Shape::Text => {}
            }
        }
        self.is_settled = true;
        Feed::Dead
    }
}

enum Shape {
    Prefix,
    Tag(Tag),
    Text,
}

fn classify(bytes: &[u8], style: TagStyle) -> Shape {
    let Some(rest) = bytes.strip_prefix(b"<") else {
        return Shape::Text;
    };
    let (is_close, rest) = match rest.strip_prefix(b"/") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    for name in [&b"FORK"[..], b"JOIN", b"ANSWER", b"RETURN"] {
        if rest.len() <= name.len() {
            if name.starts_with(rest) {
                return Shape::Prefix;
            }
        } else if let Some(tail) = rest.strip_prefix(name) {
            return match name {
                b"FORK" | b"JOIN" => numbered(tail, style, is_close, name == b"FORK"),
                _ if tail != b">" => Shape::Text,
                b"ANSWER" if is_close => Shape::Tag(Tag::AnswerClose),
                b"ANSWER" => Shape::Tag(Tag::AnswerOpen),
                _ if is_close => Shape::Tag(Tag::ReturnClose),
                _ => Shape::Tag(Tag::ReturnOpen),
            };
        }
    }
    Shape::Text
}

/// The part of a Fork or Join tag after its name: `1>` or `-1>`, in canonical decimal, so that each
/// tag has one spelling and the runtime's `</JOINi>` matches what the organizer wrote.
fn numbered(tail: &[u8], style: TagStyle, is_close: bool, is_fork: bool) -> Shape {
    let digits = match style {
        TagStyle::Plain => tail,
        TagStyle::Hyphen => match tail.strip_prefix(b"-") {
            Some(digits) => digits,
            None => return Shape::Text,
        },
    };
    let (digits, is_complete) = match digits.strip_suffix(b">") {
        Some(digits) => (digits, true),
        None => (digits, false),
    };
    let has_leading_zero = digits.len() > 1 && digits[0] == b'0';
    if digits.len() > MAX_ID_DIGITS || has_leading_zero || !digits.iter().all(u8::is_ascii_digit) {
        return Shape::Text;
    }
    if !is_complete {
        return Shape::Prefix;
    }
    let id = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .map(SubQueryId);
    match id {
        None => Shape::Text,
        Some(id) if is_fork && is_close => Shape::Tag(Tag::ForkClose(id)),
        Some(id) if is_fork => Shape::Tag(Tag::ForkOpen(id)),
        Some(_) if is_close => Shape::Tag(Tag::JoinClose),
        Some(id) => Shape::Tag(Tag::JoinOpen(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the whole of `bytes` is, fed byte by byte.
    fn tag_of(bytes: &str, style: TagStyle) -> Option<Tag> {
        let mut matcher = TagMatcher::new(style);
        let (last, head) = bytes.as_bytes().split_last()?;
        for &byte in head {
            if matcher.feed(byte) != Feed::Pending {
                return None;
            }
        }
        match matcher.feed(*last) {
            Feed::Complete(tag) => Some(tag),
            Feed::Pending | Feed::Dead => None,
        }
    }

    #[test]
    fn each_tag_has_one_spelling_per_style() {
        let id = SubQueryId(u32::MAX);
        for style in [TagStyle::Plain, TagStyle::Hyphen] {
            assert_eq!(tag_of(&style.fork_open(id), style), Some(Tag::ForkOpen(id)));
            assert_eq!(
                tag_of(&style.fork_close(id), style),
                Some(Tag::ForkClose(id))
            );
            assert_eq!(tag_of(&style.join_open(id), style), Some(Tag::JoinOpen(id)));
            assert_eq!(tag_of(&style.join_close(id), style), Some(Tag::JoinClose));
            assert_eq!(tag_of(ANSWER_OPEN, style), Some(Tag::AnswerOpen));
            assert_eq!(tag_of(ANSWER_CLOSE, style), Some(Tag::AnswerClose));
            assert_eq!(tag_of(RETURN_OPEN, style), Some(Tag::ReturnOpen));
            assert_eq!(tag_of(RETURN_CLOSE, style), Some(Tag::ReturnClose));
        }
        assert_eq!(TagStyle::Plain.fork_open(SubQueryId(1)), "<FORK1>");
        assert_eq!(TagStyle::Hyphen.join_close(SubQueryId(2)), "</JOIN-2>");
        assert_eq!(TagStyle::Hyphen.fork_close(id).len(), MAX_TAG_BYTES);
    }

    #[test]
    fn near_misses_are_text() {
        for text in [
            "<FORK>",
            "<FORK-1>",
            "<FORK01>",
            "<FORK1 >",
            "< FORK1>",
            "<fork1>",
            "<FORKx>",
            "<FORK4294967296>",
            "<FORK99999999999>",
            "<JOIN+1>",
            "<ANSWER1>",
            "<ANSWER >",
            "<//JOIN1>",
            "<RETURN",
            "<",
        ] {
            assert_eq!(tag_of(text, TagStyle::Plain), None, "{text}");
        }
        for text in ["<FORK1>", "<FORK-01>", "<FORK-->", "<FORK->"] {
            assert_eq!(tag_of(text, TagStyle::Hyphen), None, "{text}");
        }
        assert_eq!(
            tag_of("<FORK0>", TagStyle::Plain),
            Some(Tag::ForkOpen(SubQueryId(0)))
        );
    }
}
