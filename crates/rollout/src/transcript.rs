//! An episode as flat text.

use asyncthink_data::Tokenizer;
use asyncthink_protocol::{
    Action, OrganizerMachine, Protocol, RawTrace, RawWorker, SubQueryId, WorkerIndex,
};

use crate::agent::AgentRecord;
use crate::episode::{Episode, WorkerEnd};

impl Episode {
    /// The episode in the form that `Trace::check` reads. Where a token ran past a Join, its rest is written after the
    /// injected text. `protocol` is the one that the episode was played by.
    ///
    /// Token counts taken from the text differ from [`Episode::timeline`] where an agent decoded other tokens than the
    /// tokenizer makes of its text; tokens without text are lost.
    pub fn raw_trace(&self, tokenizer: &Tokenizer, protocol: Protocol) -> RawTrace {
        let workers = self
            .workers
            .iter()
            .map(|worker| RawWorker {
                sub_query_id: worker.sub_query_id.0,
                text: decoded_text(&worker.record, tokenizer),
            })
            .collect();
        RawTrace {
            capacity: protocol.capacity.get(),
            organizer: self.organizer_text(tokenizer, protocol),
            workers,
        }
    }

    fn organizer_text(&self, tokenizer: &Tokenizer, protocol: Protocol) -> String {
        let replay = Replay::of(&self.organizer, tokenizer, protocol);
        let mut text = String::new();
        let mut start = 0;
        for join in &replay.joins[..replay.num_served] {
            // A cut at the end of a tag, so that no character is broken.
            text.push_str(&String::from_utf8_lossy(&replay.decoded[start..join.end]));
            start = join.end;
            let end = self.workers.get(join.worker.0).map(|worker| &worker.end);
            if let Some(WorkerEnd::Returned(returned)) = end {
                text.push_str(returned);
            }
            text.push_str(&protocol.tags.join_close(join.id));
        }
        text.push_str(&String::from_utf8_lossy(&replay.decoded[start..]));
        text
    }
}

fn decoded_text(record: &AgentRecord, tokenizer: &Tokenizer) -> String {
    tokenizer.decode_continuation(&record.ids()[record.prompt_tokens()..])
}

/// What the organizer decoded, read again.
struct Replay {
    /// Its bytes, without what was injected.
    decoded: Vec<u8>,
    joins: Vec<Join>,
    /// Joins before the last injected id.
    num_served: usize,
}

struct Join {
    id: SubQueryId,
    worker: WorkerIndex,
    /// End of the tag in the decoded bytes.
    end: usize,
}

impl Replay {
    fn of(record: &AgentRecord, tokenizer: &Tokenizer, protocol: Protocol) -> Self {
        let mut this = Self {
            decoded: Vec::new(),
            joins: Vec::new(),
            num_served: 0,
        };
        let mut machine = OrganizerMachine::new(protocol);
        for index in record.prompt_tokens()..record.ids().len() {
            if !record.decoded()[index] {
                this.num_served = this.joins.len();
                continue;
            }
            let bytes = tokenizer.token_bytes(record.ids()[index]);
            this.decoded.extend_from_slice(bytes);
            let mut actions = Vec::new();
            // A format error is the end of the episode: nothing follows that could be read differently.
            let _ = machine.push_into(bytes, &mut actions);
            for action in actions {
                if let Action::Join { id, worker, end } = action {
                    this.joins.push(Join { id, worker, end });
                }
            }
        }
        this
    }
}
