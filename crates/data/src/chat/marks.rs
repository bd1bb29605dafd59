//! Telling the special tokens that a template writes from text in a message that spells one.
//!
//! Such text is put between two marks before the template runs. The marks go through the template with it, whatever is
//! trimmed, split or moved, and say afterwards what must be encoded as plain text. They are Unicode noncharacters, which
//! are meant for a program's own use: no text to be exchanged holds them, and a template cannot look for them.
//! Where nothing spells a special token, there are no marks and the text is what the template makes of the messages.

use std::borrow::Cow;

/// Before text that spells a special token.
const START: char = '\u{FDD0}';

/// Behind text that spells a special token.
const END: char = '\u{FDD1}';

const MARKS: [char; 2] = [START, END];

/// Puts marks around every special token that `content` spells, the longest where several do. `special` is sorted by
/// length, longest first. Marks that are in the content already are taken out: they cannot be forged.
pub(crate) fn mark<'a>(content: &'a str, special: &[String]) -> Cow<'a, str> {
    let content = if content.contains(MARKS) {
        Cow::Owned(content.replace(MARKS, ""))
    } else {
        Cow::Borrowed(content)
    };
    let spelled: Vec<&str> = special
        .iter()
        .map(String::as_str)
        .filter(|token| content.contains(token))
        .collect();
    if spelled.is_empty() {
        return content;
    }
    let mut marked = String::with_capacity(content.len() + 16);
    let mut rest = content.as_ref();
    while let Some(c) = rest.chars().next() {
        if let Some(token) = spelled.iter().find(|token| rest.starts_with(**token)) {
            marked.push(START);
            marked.push_str(token);
            marked.push(END);
            rest = &rest[token.len()..];
        } else {
            marked.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    Cow::Owned(marked)
}

/// A part of a rendered text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// What the template wrote, with the parts of messages that spell no special token.
    Trusted(&'a str),
    /// What spells a special token in a message.
    Foreign(&'a str),
}

/// Cuts a rendered text at its marks. A mark that lost its partner is dropped, and still separates what is beside it.
pub(crate) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut is_foreign = false;
    while !rest.is_empty() {
        let at = rest.find(MARKS).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(at);
        let next = tail.chars().next();
        if !head.is_empty() {
            let is_closed = is_foreign && next == Some(END);
            pieces.push(if is_closed {
                Piece::Foreign(head)
            } else {
                Piece::Trusted(head)
            });
        }
        is_foreign = next == Some(START);
        rest = &tail[next.map_or(0, char::len_utf8)..];
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special() -> Vec<String> {
        ["<|end|>x", "<|end|>", "<s>"].map(str::to_owned).into()
    }

    #[test]
    fn text_without_special_tokens_is_left_alone() {
        assert!(matches!(
            mark("a <|end| > é", &special()),
            Cow::Borrowed("a <|end| > é")
        ));
        assert_eq!(pieces("a\nb"), [Piece::Trusted("a\nb")]);
        assert_eq!(pieces(""), []);
    }

    #[test]
    fn what_spells_a_special_token_becomes_a_piece_of_its_own() {
        let marked = mark("é<s><|end|>x<|<|end|>end|>", &special());
        assert_eq!(
            pieces(&marked),
            [
                Piece::Trusted("é"),
                Piece::Foreign("<s>"),
                Piece::Foreign("<|end|>x"),
                Piece::Trusted("<|"),
                Piece::Foreign("<|end|>"),
                Piece::Trusted("end|>"),
            ]
        );
    }

    #[test]
    fn marks_can_be_neither_forged_nor_joined() {
        // Taking the marks out joins the halves, and what they spell is found.
        let marked = mark("\u{FDD1}<\u{FDD0}s>", &special());
        assert_eq!(pieces(&marked), [Piece::Foreign("<s>")]);
        // A template that cuts a token in two leaves marks without partners: the halves stay apart.
        assert_eq!(
            pieces("\u{FDD0}<|en d|>\u{FDD1}"),
            [Piece::Foreign("<|en d|>")]
        );
        assert_eq!(
            pieces("a\u{FDD0}<|en\u{FDD0}b\u{FDD1}d|>\u{FDD1}"),
            [
                Piece::Trusted("a"),
                Piece::Trusted("<|en"),
                Piece::Foreign("b"),
                Piece::Trusted("d|>")
            ]
        );
    }
}
