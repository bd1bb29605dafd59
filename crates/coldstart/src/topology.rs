//! Sequences of Forks and Joins, drawn uniformly from all legal ones.

use std::fmt::Write as _;

use asyncthink_protocol::{Capacity, SubQueryId};
use rand::{Rng, RngExt};

use crate::error::{Error, Result};

/// One action of a topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// Start a worker.
    Fork(SubQueryId),
    /// Wait for a worker.
    Join(SubQueryId),
}

/// All Fork/Join sequences of a capacity with a bounded number of Forks, the empty one included.
///
/// A sequence is legal if at most `c - 1` workers are outstanding at any time and each Join names one of them. Two choices
/// keep the set to what a cold start should show: Forks are numbered 1, 2, 3, ... in the order that they occur, so that
/// sequences that differ in names only count once; and every worker is joined, because a worker that nobody waits for has
/// worked for nothing (the protocol itself allows it).
///
/// Sequences are counted exactly by dynamic programming over (Forks left, workers outstanding): from each state one may stop if
/// nothing is outstanding, Fork if there is room, or Join any of the outstanding. Drawing follows the counts, so each
/// sequence has the same probability.
#[derive(Debug, Clone)]
pub struct Topologies {
    max_forks: usize,
    max_workers: usize,
    /// `counts[forks_left][outstanding]`: ways to go on.
    counts: Vec<Vec<u128>>,
}

impl Topologies {
    /// Counts the sequences.
    ///
    /// # Errors
    /// There are more than 128 bits can count, which takes 29 Forks or more.
    pub fn new(capacity: Capacity, max_forks: u32) -> Result<Self> {
        let too_many = || Error::TooManyTopologies {
            capacity: capacity.get(),
            max_forks,
        };
        let max_forks_len = max_forks as usize;
        let max_workers = (capacity.max_workers() as usize).min(max_forks_len);
        let mut counts: Vec<Vec<u128>> = Vec::with_capacity(max_forks_len + 1);
        for forks_left in 0..=max_forks_len {
            // More cannot be outstanding; states that are never reached would overflow first.
            let most_outstanding = max_workers.min(max_forks_len - forks_left);
            let mut row: Vec<u128> = Vec::with_capacity(most_outstanding + 1);
            for outstanding in 0..=most_outstanding {
                let mut ways = u128::from(outstanding == 0);
                if forks_left > 0 && outstanding < max_workers {
                    ways = ways
                        .checked_add(counts[forks_left - 1][outstanding + 1])
                        .ok_or_else(too_many)?;
                }
                if outstanding > 0 {
                    let joins = row[outstanding - 1].checked_mul(outstanding as u128);
                    ways = joins
                        .and_then(|joins| ways.checked_add(joins))
                        .ok_or_else(too_many)?;
                }
                row.push(ways);
            }
            counts.push(row);
        }
        Ok(Self {
            max_forks: max_forks_len,
            max_workers,
            counts,
        })
    }

    /// How many sequences there are.
    pub fn count(&self) -> u128 {
        self.counts[self.max_forks][0]
    }

    /// Draws one, each with the same probability.
    pub fn sample(&self, rng: &mut impl Rng) -> Vec<Event> {
        self.nth(rng.random_range(0..self.count()))
    }

    /// The sequence of a rank below [`Self::count`]: first the one that stops, then those that Fork, then those that Join, the
    /// oldest worker first. A rank beyond the last gives the last.
    fn nth(&self, rank: u128) -> Vec<Event> {
        let mut rank = rank.min(self.count() - 1);
        let mut forks_left = self.max_forks;
        let mut outstanding: Vec<SubQueryId> = Vec::new();
        let mut next_id = 1;
        let mut events = Vec::new();
        loop {
            if outstanding.is_empty() {
                if rank == 0 {
                    return events;
                }
                rank -= 1;
            }
            let forks = if forks_left > 0 && outstanding.len() < self.max_workers {
                self.counts[forks_left - 1][outstanding.len() + 1]
            } else {
                0
            };
            if rank < forks {
                forks_left -= 1;
                let id = SubQueryId(next_id);
                next_id += 1;
                outstanding.push(id);
                events.push(Event::Fork(id));
                continue;
            }
            rank -= forks;
            // A rank that is neither a stop nor a Fork lies within the Joins, so something is outstanding.
            let Some(after_join) = outstanding.len().checked_sub(1) else {
                return events;
            };
            let per_join = self.counts[forks_left][after_join];
            let index = usize::try_from(rank / per_join).unwrap_or(after_join);
            rank %= per_join;
            events.push(Event::Join(outstanding.remove(index.min(after_join))));
        }
    }
}

/// A topology as text, for provenance: `F1 J1 F2 J2`; `-` for the one without Forks.
pub(crate) fn describe(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        let (letter, id) = match event {
            Event::Fork(id) => ('F', id),
            Event::Join(id) => ('J', id),
        };
        let separator = if text.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{letter}{}", id.0);
    }
    if text.is_empty() {
        text.push('-');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::seeds::generator;

    fn topologies(capacity: u32, max_forks: u32) -> Topologies {
        Topologies::new(Capacity::new(capacity).unwrap(), max_forks).unwrap()
    }

    /// Every sequence by trying every action, with none of the counting.
    fn enumerate(capacity: u32, max_forks: u32) -> BTreeSet<Vec<Event>> {
        fn extend(
            prefix: &[Event],
            outstanding: &[SubQueryId],
            next_id: u32,
            limits: (u32, u32),
            found: &mut BTreeSet<Vec<Event>>,
        ) {
            if outstanding.is_empty() {
                assert!(found.insert(prefix.to_vec()));
            }
            let (capacity, max_forks) = limits;
            if next_id <= max_forks && outstanding.len() + 1 < capacity as usize {
                let id = SubQueryId(next_id);
                let events = [prefix, &[Event::Fork(id)]].concat();
                extend(
                    &events,
                    &[outstanding, &[id]].concat(),
                    next_id + 1,
                    limits,
                    found,
                );
            }
            for &id in outstanding {
                let events = [prefix, &[Event::Join(id)]].concat();
                let rest: Vec<_> = outstanding
                    .iter()
                    .copied()
                    .filter(|&other| other != id)
                    .collect();
                extend(&events, &rest, next_id, limits, found);
            }
        }
        let mut found = BTreeSet::new();
        extend(&[], &[], 1, (capacity, max_forks), &mut found);
        found
    }

    #[test]
    fn counts_equal_brute_force() {
        for capacity in 1..=5 {
            for max_forks in 0..=5 {
                let expected = enumerate(capacity, max_forks);
                let topologies = topologies(capacity, max_forks);
                assert_eq!(
                    topologies.count(),
                    expected.len() as u128,
                    "c = {capacity}, {max_forks} forks"
                );
                let all: BTreeSet<_> = (0..topologies.count())
                    .map(|rank| topologies.nth(rank))
                    .collect();
                assert_eq!(all, expected, "c = {capacity}, {max_forks} forks");
            }
        }
    }

    /// Without a bound on workers, n Forks can be joined in (2n - 1)!! ways.
    #[test]
    fn unbounded_capacity_gives_double_factorials() {
        let counts: Vec<u128> = (0..=6)
            .map(|forks| topologies(100, forks).count())
            .collect();
        assert_eq!(counts, [1, 2, 5, 20, 125, 1070, 11465]);
        assert!(Topologies::new(Capacity::new(100).unwrap(), 28).is_ok());
        let error = Topologies::new(Capacity::new(100).unwrap(), 64).unwrap_err();
        assert!(matches!(
            error,
            Error::TooManyTopologies { max_forks: 64, .. }
        ));
    }

    #[test]
    fn draws_are_uniform() {
        let topologies = topologies(3, 3);
        let mut rng = generator(5);
        let draws = 20_000;
        let mut counts: BTreeMap<Vec<Event>, u32> = BTreeMap::new();
        for _ in 0..draws {
            *counts.entry(topologies.sample(&mut rng)).or_default() += 1;
        }
        let expected = f64::from(draws) / topologies.count() as f64;
        assert_eq!(counts.len() as u128, topologies.count());
        let chi_square: f64 = counts
            .values()
            .map(|&count| (f64::from(count) - expected).powi(2) / expected)
            .sum();
        // Far above the 99.9 % quantile for so few classes.
        assert!(
            chi_square < 3.0 * topologies.count() as f64 + 20.0,
            "{chi_square}"
        );
    }

    #[test]
    fn descriptions_are_short() {
        assert_eq!(describe(&[]), "-");
        let events = [Event::Fork(SubQueryId(1)), Event::Join(SubQueryId(1))];
        assert_eq!(describe(&events), "F1 J1");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn draws_are_legal(capacity in 1_u32..9, max_forks in 0_u32..12, seed: u64) {
            let events = topologies(capacity, max_forks).sample(&mut generator(seed));
            let mut outstanding = BTreeSet::new();
            for event in &events {
                match event {
                    Event::Fork(id) => prop_assert!(outstanding.insert(*id)),
                    Event::Join(id) => prop_assert!(outstanding.remove(id)),
                }
                prop_assert!(outstanding.len() < capacity as usize);
            }
            prop_assert!(outstanding.is_empty());
            prop_assert!(events.len() <= 2 * max_forks as usize);
        }
    }
}
