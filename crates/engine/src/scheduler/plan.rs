//! The plan of one step.

use crate::sequence::SequenceIndex;

/// Part of a sequence in one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) index: SequenceIndex,
    /// Tokens that are computed, from the first that is not; none where the whole prompt is shared.
    pub(super) num_rows: usize,
    /// Whether the next token is sampled: all others are computed.
    pub(super) samples: bool,
    /// Sequence of the same tokens that computes them.
    pub(super) leader: Option<SequenceIndex>,
}

/// Entries in the order of their rows.
#[derive(Debug, Default)]
pub(super) struct Plan {
    entries: Vec<Entry>,
}

impl Plan {
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }
}
