use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tags::{Feed, Tag, TagMatcher};
use crate::{Capacity, FormatError, MalformedKind, SubQueryId, TagStyle, WorkerIndex};

/// What a Fork does when every worker place is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The Fork is a format error. A place is taken from the Fork until its Join.
    #[default]
    Error,
    /// The worker waits, first come first served, until a running worker has finished decoding;
    /// the organizer decodes on. The wait is part of the latency.
    Queue,
}

/// The rules of one episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// The spelling of Fork and Join tags; the other spelling is plain text.
    pub tags: TagStyle,
    /// The agent pool's size.
    pub capacity: Capacity,
    /// What a Fork beyond the pool does.
    pub overflow: Overflow,
    /// A guard against endless Forks: one more is [`MalformedKind::TooManyForks`].
    pub max_forks: Option<u32>,
}

/// An action that the organizer has just completed. `end` counts the bytes pushed so far up to and
/// including the tag's closing `>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a worker; the organizer decodes on.
    Fork {
        /// The sub-query's number.
        id: SubQueryId,
        /// The worker, by its place in Fork order.
        worker: WorkerIndex,
        /// The text between the tags, as decoded.
        sub_query: String,
        /// End of the closing tag.
        end: usize,
    },
    /// Wait for the worker; then `returned text</JOINi>` is injected.
    Join {
        /// The sub-query's number.
        id: SubQueryId,
        /// The worker that has this number now.
        worker: WorkerIndex,
        /// End of the tag.
        end: usize,
    },
    /// The episode is over; what follows has no meaning.
    Answer {
        /// The text between the tags, as decoded.
        text: String,
        /// End of the closing tag.
        end: usize,
    },
}

/// Recognises one organizer's actions in its decoded bytes and applies the rules.
///
/// Bytes arrive in pieces of any size; tags may be split anywhere, also inside a UTF-8 character of
/// the text around them. Injected text is never pushed. A token may run past a Join: the bytes after
/// the tag are the organizer's own and stand before the injected text in its context.
///
/// Time is linear in the bytes pushed. Thinking is not kept: memory holds one possible tag, the
/// open sub-query or answer, and the outstanding sub-queries.
#[derive(Debug, Clone)]
pub struct OrganizerMachine {
    protocol: Protocol,
    matcher: TagMatcher,
    mode: Mode,
    captured: Vec<u8>,
    outstanding: BTreeMap<SubQueryId, WorkerIndex>,
    num_forks: usize,
    num_pushed_bytes: usize,
    error: Option<FormatError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Think,
    InFork(SubQueryId),
    InAnswer,
    Answered,
}

impl OrganizerMachine {
    /// A machine at the beginning of an episode.
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            matcher: TagMatcher::new(protocol.tags),
            mode: Mode::Think,
            captured: Vec::new(),
            outstanding: BTreeMap::new(),
            num_forks: 0,
            num_pushed_bytes: 0,
            error: None,
        }
    }

    /// Takes the next decoded bytes and returns the actions that they complete, in order. Bytes
    /// after the Answer are ignored.
    ///
    /// # Errors
    ///
    /// The first broken rule; every later call returns it again. The actions completed earlier in
    /// the same call are dropped: use [`Self::push_into`] to keep them.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Action>, FormatError> {
        let mut actions = Vec::new();
        self.push_into(bytes, &mut actions)?;
        Ok(actions)
    }

    /// As [`Self::push`], with the completed actions appended to `actions` also when a later byte of
    /// the same piece breaks a rule.
    ///
    /// # Errors
    ///
    /// The first broken rule; every later call returns it again.
    pub fn push_into(
        &mut self,
        bytes: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), FormatError> {
        let mut start = 0;
        loop {
            let (num_read, action) = self.advance(&bytes[start..])?;
            start += num_read;
            match action {
                Some(action) => actions.push(action),
                None => return Ok(()),
            }
        }
    }

    /// The verdict at the end of the sequence, or where the organizer was cut.
    ///
    /// # Errors
    ///
    /// The rule broken earlier, an unclosed Fork, or [`FormatError::NoAnswer`].
    pub fn finish(&self) -> Result<(), FormatError> {
        match (self.error, self.mode) {
            (Some(error), _) => Err(error),
            (None, Mode::Answered) => Ok(()),
            (None, Mode::InFork(id)) => {
                Err(FormatError::Malformed(MalformedKind::UnclosedFork { id }))
            }
            (None, Mode::Think | Mode::InAnswer) => Err(FormatError::NoAnswer),
        }
    }

    /// Whether the Answer is complete.
    pub fn is_answered(&self) -> bool {
        self.mode == Mode::Answered
    }

    /// Sub-queries forked and not joined yet, by increasing id, with their workers.
    pub fn outstanding(&self) -> impl Iterator<Item = (SubQueryId, WorkerIndex)> + '_ {
        self.outstanding.iter().map(|(&id, &worker)| (id, worker))
    }

    /// Forks completed so far; the next worker has this index.
    pub fn num_forks(&self) -> usize {
        self.num_forks
    }

    /// Reads up to the end of the first action; returns the bytes read and the action, or all
    /// bytes and `None`.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, Option<Action>), FormatError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut at = 0;
        while at < bytes.len() && self.mode != Mode::Answered {
            if self.matcher.is_idle() {
                let rest = &bytes[at..];
                let num_text = rest.iter().position(|&byte| byte == b'<');
                let num_text = num_text.unwrap_or(rest.len());
                self.text(&rest[..num_text]);
                at += num_text;
                if at == bytes.len() {
                    break;
                }
            }
            match self.matcher.feed(bytes[at]) {
                Feed::Pending => at += 1,
                // The byte that did not fit is read again, as text or as the next tag's `<`.
                Feed::Dead => self.flush_held(),
                Feed::Complete(tag) => {
                    at += 1;
                    let end = self.num_pushed_bytes + at;
                    match self.complete(tag, end) {
                        Ok(None) => {}
                        Ok(action) => {
                            self.num_pushed_bytes = end;
                            return Ok((at, action));
                        }
                        Err(error) => {
                            self.error = Some(error);
                            return Err(error);
                        }
                    }
                }
            }
        }
        self.num_pushed_bytes += bytes.len();
        Ok((bytes.len(), None))
    }

    fn text(&mut self, text: &[u8]) {
        if matches!(self.mode, Mode::InFork(_) | Mode::InAnswer) {
            self.captured.extend_from_slice(text);
        }
    }

    fn flush_held(&mut self) {
        if matches!(self.mode, Mode::InFork(_) | Mode::InAnswer) {
            self.captured.extend_from_slice(self.matcher.held());
        }
    }

    fn complete(&mut self, tag: Tag, end: usize) -> Result<Option<Action>, FormatError> {
        match (self.mode, tag) {
            (Mode::Think, Tag::ForkOpen(id)) => {
                self.check_fork(id)?;
                self.mode = Mode::InFork(id);
            }
            (Mode::Think, Tag::JoinOpen(id)) => {
                let worker = self
                    .outstanding
                    .remove(&id)
                    .ok_or(FormatError::UnknownJoin { id })?;
                return Ok(Some(Action::Join { id, worker, end }));
            }
            (Mode::Think, Tag::AnswerOpen) => self.mode = Mode::InAnswer,
            (Mode::InFork(id), Tag::ForkClose(closed)) if closed == id => {
                let worker = WorkerIndex(self.num_forks);
                self.num_forks += 1;
                self.outstanding.insert(id, worker);
                self.mode = Mode::Think;
                let sub_query = self.take_captured();
                return Ok(Some(Action::Fork {
                    id,
                    worker,
                    sub_query,
                    end,
                }));
            }
            (Mode::InFork(outer), Tag::ForkOpen(inner)) => {
                let kind = MalformedKind::NestedFork { outer, inner };
                return Err(FormatError::Malformed(kind));
            }
            (Mode::InFork(fork), Tag::JoinOpen(join)) => {
                let kind = MalformedKind::JoinInsideFork { fork, join };
                return Err(FormatError::Malformed(kind));
            }
            (Mode::InAnswer, Tag::AnswerClose) => {
                self.mode = Mode::Answered;
                let text = self.take_captured();
                return Ok(Some(Action::Answer { text, end }));
            }
            // Every other tag is text where it stands.
            _ => self.flush_held(),
        }
        Ok(None)
    }

    /// A Fork is judged at its opening tag: nothing inside it can make it legal again, and the
    /// tokens of its sub-query are saved.
    fn check_fork(&self, id: SubQueryId) -> Result<(), FormatError> {
        let max_workers = self.protocol.capacity.max_workers();
        let num_active = self.outstanding.len();
        let has_place = match self.protocol.overflow {
            Overflow::Error => num_active < usize::try_from(max_workers).unwrap_or(usize::MAX),
            // With no place at all, waiting would never end.
            Overflow::Queue => max_workers > 0,
        };
        if self.outstanding.contains_key(&id) {
            return Err(FormatError::DuplicateSubQuery { id });
        }
        if !has_place {
            return Err(FormatError::PoolOverflow { id, max_workers });
        }
        match self.protocol.max_forks {
            Some(max_forks) if u32::try_from(self.num_forks).is_ok_and(|n| n < max_forks) => Ok(()),
            Some(max_forks) => Err(FormatError::Malformed(MalformedKind::TooManyForks {
                max_forks,
            })),
            None => Ok(()),
        }
    }

    fn take_captured(&mut self) -> String {
        // Decoded tokens may hold broken UTF-8; what a worker or a grader reads is text.
        match String::from_utf8(std::mem::take(&mut self.captured)) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol(capacity: u32, overflow: Overflow) -> Protocol {
        Protocol {
            tags: TagStyle::Plain,
            capacity: Capacity::new(capacity).expect("positive"),
            overflow,
            max_forks: None,
        }
    }

    /// The verdict on a whole organizer's decoded text.
    fn verdict(capacity: u32, text: &str) -> Result<Vec<Action>, FormatError> {
        let mut machine = OrganizerMachine::new(protocol(capacity, Overflow::Error));
        let actions = machine.push(text.as_bytes())?;
        machine.finish().map(|()| actions)
    }

    fn code(capacity: u32, text: &str) -> &'static str {
        match verdict(capacity, text) {
            Ok(_) => "ok",
            Err(error) => error.code(),
        }
    }

    #[test]
    fn actions_carry_their_text_and_end() {
        let text = "a<FORK1>b < c</FORK1>d<JOIN1>e<ANSWER>f\n</ANSWER>g";
        let expected = vec![
            Action::Fork {
                id: SubQueryId(1),
                worker: WorkerIndex(0),
                sub_query: "b < c".to_owned(),
                end: 21,
            },
            Action::Join {
                id: SubQueryId(1),
                worker: WorkerIndex(0),
                end: 29,
            },
            Action::Answer {
                text: "f\n".to_owned(),
                end: 49,
            },
        ];
        assert_eq!(verdict(2, text), Ok(expected));
    }

    #[test]
    fn an_id_is_free_again_after_its_join() {
        let once = "<FORK1>a</FORK1>";
        assert_eq!(
            code(3, &format!("{once}{once}<ANSWER>1</ANSWER>")),
            "duplicate_sub_query"
        );
        let text = format!("{once}<JOIN1>{once}<JOIN1><ANSWER>1</ANSWER>");
        assert_eq!(code(2, &text), "ok");
    }

    #[test]
    fn a_place_is_taken_until_the_join() {
        let forks = "<FORK1>a</FORK1><FORK2>b</FORK2>";
        assert_eq!(code(3, &format!("{forks}<ANSWER>1</ANSWER>")), "ok");
        assert_eq!(
            code(2, &format!("{forks}<ANSWER>1</ANSWER>")),
            "pool_overflow"
        );
        assert_eq!(code(1, "<FORK1>a</FORK1>"), "pool_overflow");
        // A duplicate in a full pool is named as what it is.
        assert_eq!(code(2, "<FORK1>a</FORK1><FORK1>"), "duplicate_sub_query");
    }

    #[test]
    fn with_a_queue_only_an_empty_pool_overflows() {
        let forks = "<FORK1>a</FORK1><FORK2>b</FORK2><FORK3>c</FORK3>";
        let mut machine = OrganizerMachine::new(protocol(2, Overflow::Queue));
        assert_eq!(machine.push(forks.as_bytes()).map(|all| all.len()), Ok(3));
        let outstanding: Vec<_> = machine.outstanding().collect();
        let expected = [(1, 0), (2, 1), (3, 2)];
        assert_eq!(
            outstanding,
            expected.map(|(id, worker)| (SubQueryId(id), WorkerIndex(worker)))
        );
        let mut machine = OrganizerMachine::new(protocol(1, Overflow::Queue));
        let error = machine.push(forks.as_bytes()).expect_err("no worker place");
        assert_eq!(error.code(), "pool_overflow");
    }

    #[test]
    fn a_join_needs_an_outstanding_fork() {
        assert_eq!(code(2, "<JOIN1>"), "unknown_join");
        assert_eq!(code(2, "<FORK1>a</FORK1><JOIN2>"), "unknown_join");
        assert_eq!(code(2, "<FORK1>a</FORK1><JOIN1><JOIN1>"), "unknown_join");
    }

    #[test]
    fn an_end_without_a_complete_answer_is_an_error() {
        for text in [
            "",
            "thinking",
            "<ANSWER>1",
            "<ANSWER>1</ANSWER",
            "</ANSWER>",
        ] {
            assert_eq!(code(2, text), "no_answer", "{text}");
        }
    }

    #[test]
    fn malformed_forks_are_named() {
        let (one, two) = (SubQueryId(1), SubQueryId(2));
        for (text, kind) in [
            (
                "<FORK1>a</FORK2><ANSWER>1</ANSWER>",
                MalformedKind::UnclosedFork { id: one },
            ),
            (
                "<FORK1>a<FORK2>b</FORK2></FORK1>",
                MalformedKind::NestedFork {
                    outer: one,
                    inner: two,
                },
            ),
            (
                "<FORK1>a<JOIN2>",
                MalformedKind::JoinInsideFork {
                    fork: one,
                    join: two,
                },
            ),
        ] {
            assert_eq!(
                verdict(3, text),
                Err(FormatError::Malformed(kind)),
                "{text}"
            );
        }
    }

    #[test]
    fn max_forks_counts_forks_not_workers() {
        let mut rules = protocol(2, Overflow::Error);
        rules.max_forks = Some(1);
        let mut machine = OrganizerMachine::new(rules);
        let text = b"<FORK1>a</FORK1><JOIN1><FORK1>";
        let expected = FormatError::Malformed(MalformedKind::TooManyForks { max_forks: 1 });
        assert_eq!(machine.push(text), Err(expected));
    }

    #[test]
    fn tags_without_a_meaning_where_they_stand_are_text() {
        let stray = "</FORK1></JOIN1><RETURN></RETURN></ANSWER><FORK-1>";
        let in_fork = "<ANSWER>x</ANSWER></JOIN1></FORK2><RETURN>";
        let in_answer = "<FORK1>x</FORK1><JOIN3><ANSWER>";
        let text = format!("{stray}<FORK1>{in_fork}</FORK1><ANSWER>{in_answer}</ANSWER><JOIN7>");
        let actions = verdict(2, &text).expect("legal");
        assert_eq!(actions.len(), 2);
        assert!(
            matches!(&actions[0], Action::Fork { sub_query, .. } if sub_query == in_fork),
            "{actions:?}"
        );
        assert!(
            matches!(&actions[1], Action::Answer { text, .. } if text == in_answer),
            "{actions:?}"
        );
    }

    #[test]
    fn a_false_start_does_not_hide_the_tag_after_it() {
        let text = "<<FORK<FORK1><</FORK</FORK1><JOIN<JOIN1><ANS<ANSWER>1</ANS</ANSWER>";
        let actions = verdict(2, text).expect("legal");
        assert_eq!(actions.len(), 3);
        assert!(
            matches!(&actions[0], Action::Fork { sub_query, .. } if sub_query == "<</FORK"),
            "{actions:?}"
        );
        assert!(
            matches!(&actions[2], Action::Answer { text, .. } if text == "1</ANS"),
            "{actions:?}"
        );
    }

    #[test]
    fn the_first_error_stays() {
        let mut machine = OrganizerMachine::new(protocol(2, Overflow::Error));
        let error = FormatError::UnknownJoin { id: SubQueryId(1) };
        let mut actions = Vec::new();
        let pushed = machine.push_into(b"<FORK2>a</FORK2><JOIN1>", &mut actions);
        assert_eq!((pushed, actions.len()), (Err(error), 1));
        assert_eq!(machine.push(b"<ANSWER>1</ANSWER>"), Err(error));
        assert_eq!(machine.finish(), Err(error));
        assert!(!machine.is_answered());
    }

    #[test]
    fn broken_utf8_becomes_replacement_characters() {
        let mut machine = OrganizerMachine::new(protocol(2, Overflow::Error));
        let actions = machine.push(b"\xff<ANSWER>\xc3\xa9\xff</ANSWER>");
        let actions = actions.expect("legal");
        assert!(matches!(&actions[0], Action::Answer { text, .. } if text == "\u{e9}\u{fffd}"));
    }

    #[test]
    fn thinking_is_not_kept() {
        let mut machine = OrganizerMachine::new(protocol(2, Overflow::Error));
        for _ in 0..1000 {
            machine.push(b"<FORK <JOI <ANSWE </RETURN> ").expect("text");
        }
        assert_eq!(machine.captured.capacity(), 0);
    }
}
