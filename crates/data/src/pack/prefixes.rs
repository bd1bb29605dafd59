//! Rows that begin alike, found from their ids.

use crate::row::TrainingRow;
use crate::tokenizer::TokenId;

/// Fewest tokens that a shared beginning, or a part of one between two branches, is computed apart for: every part is a further
/// call of attention.
pub const MIN_SHARED_TOKENS: usize = 8;

/// Rows in an order in which those that begin alike are neighbours, so that what a row shares with any earlier one of its
/// micro-batch it shares with the one just before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// Row indices.
    order: Vec<usize>,
    /// By place in the order: tokens that a row has in common with the one before it.
    shared: Vec<usize>,
}

impl Prefixes {
    /// Rows that share nothing.
    pub fn none(num_rows: usize) -> Self {
        Self {
            order: (0..num_rows).collect(),
            shared: vec![0; num_rows],
        }
    }

    /// The common beginnings of `rows`, by longest common prefix. Tokens that predict a trained one are never shared, so that
    /// every loss is computed from hidden states of its own row.
    pub fn of(rows: &[&TrainingRow]) -> Self {
        let heads: Vec<&[TokenId]> = rows.iter().map(|row| row.shareable()).collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|&a, &b| heads[a].cmp(heads[b]).then(a.cmp(&b)));
        let mut shared = vec![0; order.len()];
        for place in 1..order.len() {
            shared[place] = common_len(heads[order[place - 1]], heads[order[place]]);
        }
        drop_short_parts(&mut shared);
        Self { order, shared }
    }

    /// Row indices, neighbours first.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Tokens that the row at a place of the order shares with the one before it.
    pub fn shared(&self, place: usize) -> usize {
        self.shared[place]
    }

    /// Whether no row shares anything.
    pub fn is_none(&self) -> bool {
        self.shared.iter().all(|&tokens| tokens == 0)
    }

    /// Tokens that the rows at ascending `places` share, each with the one before it.
    pub(super) fn shared_among(&self, places: &[usize]) -> Vec<usize> {
        let mut shared = Vec::with_capacity(places.len());
        for (index, &place) in places.iter().enumerate() {
            let since = index
                .checked_sub(1)
                .map(|before| &self.shared[places[before] + 1..=place]);
            shared.push(
                since
                    .and_then(|range| range.iter().min().copied())
                    .unwrap_or(0),
            );
        }
        shared
    }
}

fn common_len(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Shortens common beginnings to branches that are at least [`MIN_SHARED_TOKENS`] apart. Rows of `first .. end` have `depth` tokens
/// in common with each other that are computed apart; the branches within are where `shared` is smallest.
fn drop_short_parts(shared: &mut [usize]) {
    let mut open = vec![(0, shared.len(), 0)];
    while let Some((first, end, depth)) = open.pop() {
        // `shared[first]` is about the row before the range.
        let Some(branch) = shared
            .get(first + 1..end)
            .and_then(|inner| inner.iter().min())
        else {
            continue;
        };
        let branch = *branch;
        let kept = if branch >= depth + MIN_SHARED_TOKENS {
            branch
        } else {
            depth
        };
        let mut start = first;
        for (place, tokens) in (first + 1..).zip(&mut shared[first + 1..end]) {
            if *tokens == branch {
                *tokens = kept;
                open.push((start, place, kept));
                start = place;
            }
        }
        open.push((start, end, kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: impl IntoIterator<Item = u32>, first_trained: usize) -> TrainingRow {
        let ids: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
        let mask = (0..ids.len()).map(|index| index >= first_trained).collect();
        TrainingRow::sft_masked(ids, mask).unwrap()
    }

    fn of(rows: &[TrainingRow]) -> Prefixes {
        Prefixes::of(&rows.iter().collect::<Vec<_>>())
    }

    #[test]
    fn what_predicts_a_trained_token_is_not_shared() {
        let rows = [row(0..30, 20), row(0..30, 20), row(0..30, 15)];
        let prefixes = of(&rows);
        // The third one has the shortest beginning.
        assert_eq!(prefixes.order(), [2, 0, 1]);
        assert_eq!(prefixes.shared, [0, 14, 14]);
        let rows = [row(0..30, 20), row(0..30, 20), row(0..30, 8)];
        assert_eq!(of(&rows).shared, [0, 0, 19]);
    }

    #[test]
    fn branches_are_some_tokens_apart() {
        let with_tail = |len: u32, tail: u32| row((0..len).chain([100 + tail; 20]), 38);
        // Branches at 10, 14 and 20: the one at 14 is too near to the first.
        let rows = [
            with_tail(20, 0),
            with_tail(20, 1),
            with_tail(14, 2),
            with_tail(10, 3),
        ];
        let prefixes = of(&rows);
        assert_eq!(prefixes.order(), [0, 1, 2, 3]);
        assert_eq!(prefixes.shared, [0, 20, 10, 10]);
        assert_eq!(prefixes.shared_among(&[0, 3]), [0, 10]);
        assert_eq!(prefixes.shared_among(&[1, 2]), [0, 10]);
        assert_eq!(prefixes.shared_among(&[0, 1]), [0, 20]);
        // Too short to be worth it.
        assert!(of(&[with_tail(7, 0), with_tail(7, 1)]).is_none());
    }
}
