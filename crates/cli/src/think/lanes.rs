//! What happens in an episode as lines of text, agent by agent.

use std::collections::BTreeMap;

use asyncthink_protocol::WorkerIndex;
use asyncthink_rollout::{Agent, AgentEvent, Outcome, RolloutEvent, WorkerEnd};
use unicode_width::UnicodeWidthChar;

use super::text::{Utf8Pieces, push_visible, visible};

/// Where the text of a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The agent decoded it.
    Decoded,
    /// A worker returned it to the organizer.
    Injected,
    /// It says what happened.
    Note,
}

impl Mark {
    /// What stands between the agent's name and the text. Text of a model
    /// cannot pass for a note.
    pub(crate) fn symbol(self) -> char {
        match self {
            Self::Decoded => '|',
            Self::Injected => '<',
            Self::Note => '*',
        }
    }
}

/// A line of an agent, free of control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) agent: Agent,
    pub(crate) mark: Mark,
    pub(crate) text: String,
}

/// The agent as it is called: workers are counted from 1, in the order of
/// their Forks.
pub(crate) fn name(agent: Agent) -> String {
    match agent {
        Agent::Organizer => "organizer".to_owned(),
        Agent::Worker(worker) => worker_name(worker),
    }
}

fn worker_name(WorkerIndex(index): WorkerIndex) -> String {
    format!("worker {}", index + 1)
}

/// The agents of one episode and the lines that they have not completed.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: BTreeMap<Agent, Lane>,
}

/// One agent.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pieces: Utf8Pieces,
    partial: String,
    num_tokens: u64,
    waits_for: Option<WorkerIndex>,
    has_ended: bool,
}

impl Lane {
    /// What the agent is at: the line that it writes, or whom it waits for.
    pub(crate) fn doing(&self) -> String {
        match self.waits_for {
            Some(worker) => format!("waits for {}", worker_name(worker)),
            None => self.partial.clone(),
        }
    }

    /// Tokens with text decoded so far.
    pub(crate) fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Appends decoded bytes and gives the lines that they complete.
    fn decode(&mut self, bytes: &[u8]) -> Vec<String> {
        // An end of sequence has no text; the totals leave it out too.
        self.num_tokens += u64::from(!bytes.is_empty());
        let mut lines = Vec::new();
        for c in self.pieces.push(bytes).chars() {
            if c == '\n' {
                lines.push(std::mem::take(&mut self.partial));
            } else {
                push_visible(&mut self.partial, c);
            }
        }
        lines
    }

    /// The line as far as it has come, if there is any of it.
    fn flush(&mut self) -> Option<String> {
        self.partial.push_str(self.pieces.finish());
        (!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial))
    }
}

impl Lanes {
    /// Takes an event and gives the lines that are complete with it.
    pub(crate) fn event(&mut self, event: &RolloutEvent<'_>) -> Vec<Line> {
        let agent = event.agent;
        let mut lines = Vec::new();
        match event.event {
            AgentEvent::Decoded { bytes, .. } => {
                let texts = self.lane(agent).decode(bytes);
                lines.extend(texts.into_iter().map(|text| Line {
                    agent,
                    mark: Mark::Decoded,
                    text,
                }));
            }
            AgentEvent::Forked { sub_query_id, .. } => {
                // The Fork itself stands in the organizer's text.
                self.flush(Agent::Organizer, &mut lines);
                self.note(
                    agent,
                    format!("forked as sub-query {sub_query_id}"),
                    &mut lines,
                );
            }
            AgentEvent::Waiting { worker } => {
                self.lane(agent).waits_for = Some(worker);
                let note = format!("waits for {}", worker_name(worker));
                self.note(agent, note, &mut lines);
            }
            AgentEvent::Injected { text, .. } => {
                self.lane(agent).waits_for = None;
                self.flush(agent, &mut lines);
                lines.extend(text.split('\n').map(|line| Line {
                    agent,
                    mark: Mark::Injected,
                    text: visible(line),
                }));
            }
            AgentEvent::Ended(end) => {
                let what = match end {
                    WorkerEnd::Returned(_) => "returned",
                    WorkerEnd::Empty => "ended without a return",
                    WorkerEnd::Cancelled => "cancelled, because the episode is over",
                };
                self.end(agent, what, &mut lines);
            }
            AgentEvent::Finished(outcome) => {
                let what = match outcome {
                    Outcome::Answered(_) => "answered",
                    Outcome::Failed(_) => "stopped by a format error",
                };
                self.end(agent, what, &mut lines);
            }
        }
        lines
    }

    /// Everything that is left, where the episode was stopped.
    pub(crate) fn flush_all(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        for agent in self.lanes.keys().copied().collect::<Vec<_>>() {
            self.flush(agent, &mut lines);
        }
        lines
    }

    /// Cuts lines that have become wider than `width` and gives what was cut
    /// off their beginnings.
    pub(crate) fn cut(&mut self, width: impl Fn(Agent) -> usize) -> Vec<Line> {
        let mut lines = Vec::new();
        for (&agent, lane) in &mut self.lanes {
            while let Some(end) = break_at(&lane.partial, width(agent)) {
                let rest = lane.partial.split_off(end);
                lines.push(Line {
                    agent,
                    mark: Mark::Decoded,
                    text: std::mem::replace(&mut lane.partial, rest),
                });
            }
        }
        lines
    }

    /// The agents that have not ended.
    pub(crate) fn active(&self) -> impl Iterator<Item = (Agent, &Lane)> {
        self.lanes
            .iter()
            .filter(|(_, lane)| !lane.has_ended)
            .map(|(&agent, lane)| (agent, lane))
    }

    fn lane(&mut self, agent: Agent) -> &mut Lane {
        self.lanes.entry(agent).or_default()
    }

    fn flush(&mut self, agent: Agent, lines: &mut Vec<Line>) {
        lines.extend(self.lane(agent).flush().map(|text| Line {
            agent,
            mark: Mark::Decoded,
            text,
        }));
    }

    fn note(&mut self, agent: Agent, text: String, lines: &mut Vec<Line>) {
        self.flush(agent, lines);
        lines.push(Line {
            agent,
            mark: Mark::Note,
            text,
        });
    }

    fn end(&mut self, agent: Agent, what: &str, lines: &mut Vec<Line>) {
        let lane = self.lane(agent);
        (lane.waits_for, lane.has_ended) = (None, true);
        let num_tokens = lane.num_tokens;
        let tokens = if num_tokens == 1 { "token" } else { "tokens" };
        self.note(agent, format!("{what}; {num_tokens} {tokens}"), lines);
    }
}

/// Where a text of more than `width` columns is to be cut: after the last space
/// that fits, or where the columns end. At least one character is kept.
pub(crate) fn break_at(text: &str, width: usize) -> Option<usize> {
    let mut num_columns = 0;
    let mut after_space = None;
    for (at, c) in text.char_indices() {
        num_columns += c.width().unwrap_or(0);
        if num_columns > width {
            return Some(after_space.unwrap_or_else(|| at.max(first_len(text))));
        }
        if c == ' ' {
            after_space = Some(at + 1);
        }
    }
    None
}

fn first_len(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

#[cfg(test)]
pub(crate) mod tests {
    use asyncthink_data::TokenId;
    use asyncthink_protocol::{FormatError, SubQueryId};

    use super::*;

    pub(crate) const ORGANIZER: Agent = Agent::Organizer;
    pub(crate) const WORKER: Agent = Agent::Worker(WorkerIndex(0));

    pub(crate) fn event(agent: Agent, event: AgentEvent<'_>) -> RolloutEvent<'_> {
        RolloutEvent {
            query: 0,
            agent,
            event,
        }
    }

    pub(crate) fn decoded(agent: Agent, bytes: &[u8]) -> RolloutEvent<'_> {
        let token = TokenId(0);
        event(agent, AgentEvent::Decoded { token, bytes })
    }

    pub(crate) fn forked() -> RolloutEvent<'static> {
        let forked = AgentEvent::Forked {
            sub_query_id: SubQueryId(7),
            sub_query: "q",
        };
        event(WORKER, forked)
    }

    fn shown(lines: &[Line]) -> Vec<String> {
        lines
            .iter()
            .map(|line| format!("{} {} {}", name(line.agent), line.mark.symbol(), line.text))
            .collect()
    }

    #[test]
    fn an_episode_becomes_lines() {
        let mut lanes = Lanes::default();
        let worker = WorkerIndex(0);
        let returned = WorkerEnd::Returned("r\u{1b}\n2".to_owned());
        let answered = Outcome::Answered("1".to_owned());
        let lines: Vec<Line> = [
            decoded(ORGANIZER, b"hm\n\nyes "),
            decoded(ORGANIZER, b"<FORK7>q</FORK7>"),
            forked(),
            decoded(WORKER, b"\xc3"),
            decoded(ORGANIZER, b"<JOIN7>"),
            event(ORGANIZER, AgentEvent::Waiting { worker }),
            decoded(WORKER, b"\xa9\tx\x1b[2J"),
            event(WORKER, AgentEvent::Ended(&returned)),
            event(
                ORGANIZER,
                AgentEvent::Injected {
                    worker,
                    text: "r\u{1b}\n2</JOIN7>",
                },
            ),
            decoded(ORGANIZER, b"<ANSWER>1</ANSWER>"),
            event(ORGANIZER, AgentEvent::Finished(&answered)),
        ]
        .iter()
        .flat_map(|event| lanes.event(event))
        .collect();
        assert_eq!(
            shown(&lines),
            [
                "organizer | hm",
                "organizer | ",
                "organizer | yes <FORK7>q</FORK7>",
                "worker 1 * forked as sub-query 7",
                "organizer | <JOIN7>",
                "organizer * waits for worker 1",
                "worker 1 | \u{e9}    x\\u{1b}[2J",
                "worker 1 * returned; 2 tokens",
                "organizer < r\\u{1b}",
                "organizer < 2</JOIN7>",
                "organizer | <ANSWER>1</ANSWER>",
                "organizer * answered; 4 tokens",
            ]
        );
        assert_eq!(lanes.active().count(), 0);
        assert!(lanes.flush_all().is_empty());
    }

    #[test]
    fn the_end_without_an_answer_is_noted_too() {
        let mut lanes = Lanes::default();
        let failed = Outcome::Failed(FormatError::NoAnswer);
        let lines: Vec<Line> = [
            decoded(ORGANIZER, b"a"),
            forked(),
            event(ORGANIZER, AgentEvent::Finished(&failed)),
            event(WORKER, AgentEvent::Ended(&WorkerEnd::Cancelled)),
        ]
        .iter()
        .flat_map(|event| lanes.event(event))
        .collect();
        assert_eq!(
            shown(&lines[2..]),
            [
                "organizer * stopped by a format error; 1 token",
                "worker 1 * cancelled, because the episode is over; 0 tokens",
            ]
        );
    }

    #[test]
    fn a_stop_leaves_nothing_unsaid() {
        let mut lanes = Lanes::default();
        lanes.event(&decoded(ORGANIZER, b"half a line \xe2\x82"));
        assert_eq!(
            shown(&lanes.flush_all()),
            ["organizer | half a line \u{fffd}"]
        );
    }

    #[test]
    fn wide_lines_are_cut_and_lose_nothing() {
        let mut lanes = Lanes::default();
        let text = "one two three \u{6f22}\u{5b57}\u{6f22}\u{5b57}-and-a-long-word x";
        lanes.event(&decoded(ORGANIZER, text.as_bytes()));
        let mut lines = shown(&lanes.cut(|_| 8));
        lines.extend(shown(&lanes.flush_all()));
        assert_eq!(
            lines,
            [
                "organizer | one two ",
                "organizer | three ",
                "organizer | \u{6f22}\u{5b57}\u{6f22}\u{5b57}",
                "organizer | -and-a-l",
                "organizer | ong-word",
                "organizer |  x",
            ]
        );
        assert_eq!(break_at("\u{6f22}\u{5b57}", 1), Some(3));
        assert_eq!(break_at("ab", 2), None);
    }
}
