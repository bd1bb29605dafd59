//! Sequences that wait to run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use asyncthink_data::TokenId;

use crate::sequence::{Sequence, SequenceIndex};

/// Order of admission: who holds blocks still, then the longest expected, then the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    needs_blocks: bool,
    expected_tokens: Reverse<usize>,
    arrival: u64,
}

impl Place {
    fn of(sequence: &Sequence) -> Self {
        Self {
            needs_blocks: sequence.admitted.is_none(),
            expected_tokens: Reverse(sequence.expected_tokens),
            arrival: sequence.arrival,
        }
    }
}

/// Waiting sequences in their order, and those without blocks by their tokens.
#[derive(Debug, Default)]
pub(super) struct Queue {
    places: BTreeMap<Place, SequenceIndex>,
    by_tokens: HashMap<Vec<TokenId>, Vec<SequenceIndex>>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn insert(&mut self, index: SequenceIndex, sequence: &Sequence) {
        self.places.insert(Place::of(sequence), index);
        if sequence.admitted.is_none() {
            match self.by_tokens.get_mut(&sequence.tokens) {
                Some(same) => same.push(index),
                None => {
                    self.by_tokens.insert(sequence.tokens.clone(), vec![index]);
                }
            }
        }
    }

    /// Takes a sequence out, which has not changed since it was put in.
    pub(super) fn remove(&mut self, index: SequenceIndex, sequence: &Sequence) {
        self.places.remove(&Place::of(sequence));
        if sequence.admitted.is_none()
            && let Some(same) = self.by_tokens.get_mut(&sequence.tokens)
        {
            same.retain(|&other| other != index);
            if same.is_empty() {
                self.by_tokens.remove(&sequence.tokens);
            }
        }
    }

    /// The first one, or the next one after a place.
    pub(super) fn next(&self, after: Option<Place>) -> Option<(Place, SequenceIndex)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.places.range((start, Bound::Unbounded));
        rest.next().map(|(&place, &index)| (place, index))
    }

    /// Sequences without blocks that have exactly these tokens.
    pub(super) fn with_tokens(&self, tokens: &[TokenId]) -> &[SequenceIndex] {
        self.by_tokens.get(tokens).map_or(&[], Vec::as_slice)
    }
}
