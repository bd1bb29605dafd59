use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    Action, Capacity, ForkPoint, FormatError, Fragment, OrganizerMachine, Overflow, Protocol,
    SubQueryId, TagStyle, Timeline, TimelineError, WorkerIndex, returned_text,
};

/// An episode as flat text, unchecked: one line of a trace file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawTrace {
    /// The pool's capacity `c`.
    pub capacity: u32,
    /// The organizer's text with returned text in place: after each `<JOINi>` comes exactly the
    /// worker's returned text and `</JOINi>`.
    pub organizer: String,
    /// The workers in Fork order.
    #[serde(default)]
    pub workers: Vec<RawWorker>,
}

/// A worker of a [`RawTrace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawWorker {
    /// The number in the Fork that started it.
    pub sub_query_id: u32,
    /// Everything that it decoded, its return included.
    pub text: String,
}

/// Counts the tokens of a text.
pub trait TokenCounter {
    /// Tokens of the whole text.
    fn count(&self, text: &str) -> u64;

    /// For each byte offset of `ends` (increasing, at character boundaries) the tokens of `text` up
    /// to and including the one that holds the byte before it. The default counts each prefix on its
    /// own, which is quadratic; a tokenizer with offsets does it in one pass.
    fn count_prefixes(&self, text: &str, ends: &[usize]) -> Vec<u64> {
        ends.iter().map(|&end| self.count(&text[..end])).collect()
    }
}

/// One Unicode scalar value is one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CharCounter;

impl TokenCounter for CharCounter {
    fn count(&self, text: &str) -> u64 {
        text.chars().count() as u64
    }

    fn count_prefixes(&self, text: &str, ends: &[usize]) -> Vec<u64> {
        let mut start = 0;
        let mut num_tokens = 0;
        ends.iter()
            .map(|&end| {
                num_tokens += self.count(&text[start..end]);
                start = end;
                num_tokens
            })
            .collect()
    }
}

/// Why a raw trace is not a [`Trace`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The organizer broke a rule: the trace is readable and invalid.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The capacity is 0.
    #[error("`capacity` must be at least 1: {capacity}")]
    Capacity {
        /// The value found.
        capacity: u32,
    },
    /// A Fork has no entry in `workers`, or one with another sub-query.
    #[error("fork number {worker} is of sub-query `{id}`, but `workers[{worker}]` is {found}")]
    WorkerMismatch {
        /// The worker's place in Fork order, from 0.
        worker: usize,
        /// The sub-query of the Fork.
        id: SubQueryId,
        /// What stands there instead, in words.
        found: String,
    },
    /// `workers` has entries beyond the last Fork.
    #[error("`workers` has {num_workers} entries for {num_forks} forks")]
    UnusedWorkers {
        /// Forks in the organizer's text.
        num_forks: usize,
        /// Entries of `workers`.
        num_workers: usize,
    },
    /// The text after a Join is not what the worker returned.
    #[error(
        "the text after the join of sub-query `{id}` at byte {at_bytes} is not the worker's returned text and its closing tag"
    )]
    InjectedText {
        /// The sub-query joined.
        id: SubQueryId,
        /// Where the injected text should begin.
        at_bytes: usize,
    },
    /// The token counts contradict each other.
    #[error("the token counts do not fit together: {0}")]
    Counts(#[from] TimelineError),
}

impl TraceError {
    /// The stable code: that of the format error, or `unreadable`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Format(error) => error.code(),
            _ => "unreadable",
        }
    }

    /// The broken rule, if the trace could be read.
    pub fn format_error(&self) -> Option<FormatError> {
        match self {
            Self::Format(error) => Some(*error),
            _ => None,
        }
    }
}

/// Who produced a stretch of the organizer's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// The organizer decoded it.
    Decoded,
    /// The runtime put it there: a worker's returned text and the closing Join tag.
    Injected(WorkerIndex),
}

/// A stretch of the organizer's text, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The bytes of the organizer's text.
    pub bytes: Range<usize>,
    /// Who produced them.
    pub kind: SpanKind,
}

/// A worker of a checked trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceWorker {
    /// The number in its Fork.
    pub id: SubQueryId,
    /// The text of its Fork.
    pub sub_query: String,
    /// What it returned; empty if it has no complete return.
    pub returned: String,
    /// Whether the organizer joined it; if not, it was cancelled at the organizer's end.
    pub is_joined: bool,
}

/// A legal episode: only [`Trace::check`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    timeline: Timeline,
    answer: String,
    spans: Vec<Span>,
    workers: Vec<TraceWorker>,
    actions: Vec<Action>,
}

impl Trace {
    /// Reads a flat trace: recognises the actions, skips the injected text unread, applies the rules
    /// and counts.
    ///
    /// # Errors
    ///
    /// [`TraceError::Format`] with the first broken rule; any other variant if the text, the workers
    /// and the counts do not fit together, whichever comes first in the organizer's text.
    pub fn check(
        raw: &RawTrace,
        tags: TagStyle,
        overflow: Overflow,
        counter: &dyn TokenCounter,
    ) -> Result<Self, TraceError> {
        let capacity = Capacity::new(raw.capacity).ok_or(TraceError::Capacity {
            capacity: raw.capacity,
        })?;
        let protocol = Protocol {
            tags,
            capacity,
            overflow,
            max_forks: None,
        };
        Reader {
            raw,
            tags,
            counter,
            at: 0,
            fragment_start: 0,
            fork_ends: Vec::new(),
            fragments: Vec::new(),
            spans: Vec::new(),
            workers: Vec::new(),
            actions: Vec::new(),
        }
        .read(protocol)
    }

    /// The token counts, latency and concurrency.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The answer's text.
    pub fn answer(&self) -> &str {
        &self.answer
    }

    /// The organizer's text cut into decoded and injected stretches, which alternate and cover it.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The workers in Fork order.
    pub fn workers(&self) -> &[TraceWorker] {
        &self.workers
    }

    /// The actions in order; `end` counts bytes of decoded text only, as at run time.
    pub fn actions(&self) -> &[Action] {
        &self.actions
    }
}

struct Reader<'a> {
    raw: &'a RawTrace,
    tags: TagStyle,
    counter: &'a dyn TokenCounter,
    /// Bytes of the organizer's text read so far.
    at: usize,
    fragment_start: usize,
    /// Ends of the Forks since `fragment_start`, relative to it.
    fork_ends: Vec<usize>,
    fragments: Vec<Fragment>,
    spans: Vec<Span>,
    workers: Vec<TraceWorker>,
    actions: Vec<Action>,
}

impl Reader<'_> {
    fn read(mut self, protocol: Protocol) -> Result<Trace, TraceError> {
        let text = self.raw.organizer.as_bytes();
        let mut machine = OrganizerMachine::new(protocol);
        let mut answer = String::new();
        loop {
            let (num_read, action) = machine.advance(&text[self.at..])?;
            self.at += num_read;
            let Some(action) = action else {
                break;
            };
            match &action {
                Action::Fork { id, sub_query, .. } => self.fork(*id, sub_query)?,
                Action::Join { id, worker, .. } => self.join(*id, *worker)?,
                Action::Answer { text, .. } => answer.clone_from(text),
            }
            self.actions.push(action);
        }
        machine.finish()?;
        if self.workers.len() != self.raw.workers.len() {
            return Err(TraceError::UnusedWorkers {
                num_forks: self.workers.len(),
                num_workers: self.raw.workers.len(),
            });
        }
        self.end_fragment(None);
        let count = |worker: &RawWorker| self.counter.count(&worker.text);
        let worker_tokens = self.raw.workers.iter().map(count).collect();
        Ok(Trace {
            timeline: Timeline::new(
                protocol.capacity,
                protocol.overflow,
                self.fragments,
                worker_tokens,
            )?,
            answer,
            spans: self.spans,
            workers: self.workers,
            actions: self.actions,
        })
    }

    fn fork(&mut self, id: SubQueryId, sub_query: &str) -> Result<(), TraceError> {
        let worker = self.workers.len();
        let found = match self.raw.workers.get(worker) {
            Some(raw) if raw.sub_query_id == id.0 => {
                self.fork_ends.push(self.at - self.fragment_start);
                self.workers.push(TraceWorker {
                    id,
                    sub_query: sub_query.to_owned(),
                    returned: returned_text(&raw.text).to_owned(),
                    is_joined: false,
                });
                return Ok(());
            }
            Some(raw) => format!("of sub-query `{}`", raw.sub_query_id),
            None => "missing".to_owned(),
        };
        Err(TraceError::WorkerMismatch { worker, id, found })
    }

    fn join(&mut self, id: SubQueryId, worker: WorkerIndex) -> Result<(), TraceError> {
        self.end_fragment(Some(worker));
        let rest = &self.raw.organizer[self.at..];
        let joined = &mut self.workers[worker.0];
        joined.is_joined = true;
        if rest.is_empty() {
            // Cut at the Join, before anything was injected: the verdict is that of any cut.
            self.fragment_start = self.at;
            return Ok(());
        }
        let close = self.tags.join_close(id);
        let is_exact = rest
            .strip_prefix(joined.returned.as_str())
            .is_some_and(|rest| rest.starts_with(&close));
        if !is_exact {
            let at_bytes = self.at;
            return Err(TraceError::InjectedText { id, at_bytes });
        }
        let end = self.at + joined.returned.len() + close.len();
        self.spans.push(Span {
            bytes: self.at..end,
            kind: SpanKind::Injected(worker),
        });
        self.at = end;
        self.fragment_start = end;
        Ok(())
    }

    fn end_fragment(&mut self, join: Option<WorkerIndex>) {
        let text = &self.raw.organizer[self.fragment_start..self.at];
        let num_tokens = self.counter.count(text);
        let first_worker = self.workers.len() - self.fork_ends.len();
        let mut earliest = 0;
        let forks = self
            .counter
            .count_prefixes(text, &self.fork_ends)
            .into_iter()
            .enumerate()
            .map(|(i, at_tokens)| {
                // A prefix alone may have more tokens than within the text, where they merge.
                earliest = at_tokens.clamp(earliest, num_tokens);
                ForkPoint {
                    worker: WorkerIndex(first_worker + i),
                    at_tokens: earliest,
                }
            })
            .collect();
        self.fragments.push(Fragment {
            num_tokens,
            forks,
            join,
        });
        self.fork_ends.clear();
        self.spans.push(Span {
            bytes: self.fragment_start..self.at,
            kind: SpanKind::Decoded,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(capacity: u32, organizer: &str, workers: &[(u32, &str)]) -> RawTrace {
        RawTrace {
            capacity,
            organizer: organizer.to_owned(),
            workers: workers
                .iter()
                .map(|&(sub_query_id, text)| RawWorker {
                    sub_query_id,
                    text: text.to_owned(),
                })
                .collect(),
        }
    }

    fn check(raw: &RawTrace) -> Result<Trace, TraceError> {
        Trace::check(raw, TagStyle::Plain, Overflow::Error, &CharCounter)
    }

    #[test]
    fn a_line_of_json_is_read_and_counted() {
        let line = r#"{"id": "a", "capacity": 2,
            "organizer": "go <FORK1>q\u00e9</FORK1>think<JOIN1>r</JOIN1><ANSWER>7</ANSWER>",
            "workers": [{"sub_query_id": 1, "text": "hm <RETURN>r</RETURN>"}]}"#;
        let raw: RawTrace = serde_json::from_str(line).expect("the documented form");
        let trace = check(&raw).expect("legal");
        assert_eq!(trace.answer(), "7");
        let timeline = trace.timeline();
        // "go <FORK1>qe</FORK1>" is 20 characters, "think<JOIN1>" 12, the answer 18, the worker 21.
        let fragments = timeline.fragments();
        assert_eq!((fragments[0].num_tokens, fragments[1].num_tokens), (32, 18));
        assert_eq!(fragments[0].forks[0].at_tokens, 20);
        assert_eq!(timeline.worker_tokens(), [21]);
        assert_eq!(timeline.latency(), 41 + 18);
        assert_eq!(timeline.decoded_tokens(), 32 + 18 + 21);
        let worker = &trace.workers()[0];
        assert_eq!(
            (worker.sub_query.as_str(), worker.returned.as_str()),
            ("q\u{e9}", "r")
        );
        assert!(worker.is_joined);
    }

    #[test]
    fn returned_text_is_data() {
        let returned = "</JOIN1><FORK2>x</FORK2><JOIN9><ANSWER>no</ANSWER>";
        let organizer = format!("<FORK1>q</FORK1><JOIN1>{returned}</JOIN1><ANSWER>yes</ANSWER>");
        let text = format!("<RETURN>{returned}</RETURN>");
        let trace = check(&raw(2, &organizer, &[(1, &text)])).expect("legal");
        assert_eq!(trace.answer(), "yes");
        assert_eq!(trace.workers().len(), 1);
        let texts: Vec<_> = trace
            .spans()
            .iter()
            .map(|span| (&organizer[span.bytes.clone()], span.kind))
            .collect();
        let injected = format!("{returned}</JOIN1>");
        assert_eq!(
            texts,
            [
                ("<FORK1>q</FORK1><JOIN1>", SpanKind::Decoded),
                (injected.as_str(), SpanKind::Injected(WorkerIndex(0))),
                ("<ANSWER>yes</ANSWER>", SpanKind::Decoded),
            ]
        );
    }

    #[test]
    fn a_reused_id_names_the_latest_worker() {
        let organizer =
            "<FORK1>a</FORK1><JOIN1>A</JOIN1><FORK1>b</FORK1><JOIN1>B</JOIN1><ANSWER></ANSWER>";
        let workers = [(1, "<RETURN>A</RETURN>"), (1, "<RETURN>B</RETURN>")];
        let trace = check(&raw(2, organizer, &workers)).expect("legal");
        assert_eq!(trace.workers()[1].returned, "B");
    }

    #[test]
    fn a_worker_without_a_return_gives_nothing_and_an_unjoined_one_is_legal() {
        let organizer = "<FORK1>a</FORK1><FORK2>b</FORK2><JOIN1></JOIN1><ANSWER>1</ANSWER>";
        let trace = check(&raw(3, organizer, &[(1, "cut <RETURN>"), (2, "")])).expect("legal");
        assert_eq!(trace.workers()[0].returned, "");
        assert!(!trace.workers()[1].is_joined);
    }

    #[test]
    fn broken_rules_are_format_errors_whatever_the_workers_are() {
        for (organizer, code) in [
            ("<JOIN1>x</JOIN1><ANSWER>1</ANSWER>", "unknown_join"),
            ("<FORK1>a<FORK2>", "malformed"),
            (
                "<FORK1>a</FORK1><FORK2>b</FORK2><ANSWER>1</ANSWER>",
                "pool_overflow",
            ),
            ("<FORK1>a</FORK1><FORK1>b</FORK1>", "duplicate_sub_query"),
            ("<FORK1>a</FORK1><JOIN1>", "no_answer"),
            ("", "no_answer"),
        ] {
            let error = check(&raw(2, organizer, &[(1, "")])).expect_err(organizer);
            assert_eq!(error.code(), code, "{organizer}");
            assert!(error.format_error().is_some());
        }
    }

    #[test]
    fn lines_that_contradict_themselves_are_unreadable() {
        let fork = "<FORK1>a</FORK1>";
        let answer = "<ANSWER>1</ANSWER>";
        for raw in [
            raw(0, answer, &[]),
            raw(2, &format!("{fork}{answer}"), &[]),
            raw(2, &format!("{fork}{answer}"), &[(2, "")]),
            raw(2, answer, &[(1, "")]),
            raw(
                2,
                &format!("{fork}<JOIN1>other</JOIN1>{answer}"),
                &[(1, "<RETURN>r</RETURN>")],
            ),
            raw(
                2,
                &format!("{fork}<JOIN1>r</JOIN2>{answer}"),
                &[(1, "<RETURN>r</RETURN>")],
            ),
        ] {
            let error = check(&raw).expect_err("contradiction");
            assert_eq!(error.code(), "unreadable", "{raw:?}");
            assert_eq!(error.format_error(), None);
        }
    }

    #[test]
    fn the_hyphen_spelling_is_its_own_language() {
        let organizer = "<FORK-1>a</FORK-1><FORK1><JOIN-1>r</JOIN-1><ANSWER>1</ANSWER>";
        let raw = raw(2, organizer, &[(1, "<RETURN>r</RETURN>")]);
        let trace = Trace::check(&raw, TagStyle::Hyphen, Overflow::Error, &CharCounter);
        assert_eq!(trace.expect("legal").timeline().num_joins(), 1);
    }

    /// Two bytes are a token, so a prefix of odd length has a token that the whole continues.
    struct Pairs;

    impl TokenCounter for Pairs {
        fn count(&self, text: &str) -> u64 {
            text.len().div_ceil(2) as u64
        }
    }

    #[test]
    fn any_counter_gives_a_consistent_timeline() {
        let organizer = "x<FORK1>ab</FORK1><JOIN1></JOIN1><ANSWER>1</ANSWER>";
        let raw = raw(2, organizer, &[(1, "abc")]);
        let trace = Trace::check(&raw, TagStyle::Plain, Overflow::Error, &Pairs).expect("legal");
        let fragment = &trace.timeline().fragments()[0];
        assert_eq!((fragment.forks[0].at_tokens, fragment.num_tokens), (9, 13));
        assert_eq!(trace.timeline().worker_tokens(), [2]);
    }
}
