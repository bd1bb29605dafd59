//! Randomness as a function of `(seed, stream, step, index)`.
//!
//! No generator lives longer than one use, so a checkpoint has no generator state to save and a
//! resumed run draws exactly what the unbroken one drew.

/// What a draw is for; streams of one seed are unrelated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Order of training items; `step` is the epoch.
    DataOrder,
    /// Sampling of an episode during training.
    Rollout,
    /// Random initial weights.
    Initialisation,
    /// Sampling of an episode during evaluation.
    Evaluation,
    /// Resampling for intervals.
    Bootstrap,
    /// Choice of the problems of an evaluation.
    EvaluationProblems,
    /// Problems sampled in place of groups without a signal.
    Refill,
}

impl Stream {
    const fn tag(self) -> u64 {
        match self {
            Self::DataOrder => 0x6461_7461,
            Self::Rollout => 0x726f_6c6c,
            Self::Initialisation => 0x696e_6974,
            Self::Evaluation => 0x6576_616c,
            Self::Bootstrap => 0x626f_6f74,
            Self::EvaluationProblems => 0x6576_7072,
            Self::Refill => 0x7265_666c,
        }
    }
}

/// A seed for one use.
pub fn derive_seed(seed: u64, stream: Stream, step: u64, index: u64) -> u64 {
    [stream.tag(), step, index]
        .iter()
        .fold(mix(seed), |state, word| mix(state ^ mix(*word)))
}

/// Output function of `SplitMix64` (Steele, Lea and Flood 2014): a bijection with full avalanche.
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A short-lived generator; its sequence is part of what a run's seed means and must not change.
#[derive(Clone, Debug)]
pub struct Draws {
    key: u64,
    counter: u64,
}

impl Draws {
    /// Draws for one use.
    pub fn new(seed: u64, stream: Stream, step: u64, index: u64) -> Self {
        Self {
            key: derive_seed(seed, stream, step, index),
            counter: 0,
        }
    }

    /// A uniform number below `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a draw below 0");
        self.counter += 1;
        let word = mix(self.key ^ mix(self.counter));
        // The bias of the multiply-shift reduction is under bound / 2^64.
        let scaled = (u128::from(word) * bound as u128) >> 64;
        usize::try_from(scaled).unwrap_or(bound - 1)
    }
}

/// The order of `num_items` items in epoch `epoch`: a seeded permutation of `0..num_items`.
pub fn epoch_order(seed: u64, epoch: u64, num_items: usize) -> Vec<usize> {
    permutation(seed, Stream::DataOrder, epoch, num_items)
}

/// A permutation of `0..num_items` by seed, stream and step.
pub fn permutation(seed: u64, stream: Stream, step: u64, num_items: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..num_items).collect();
    let mut draws = Draws::new(seed, stream, step, 0);
    for last in (1..num_items).rev() {
        order.swap(last, draws.below(last + 1));
    }
    order
}

/// The endless sequence of items that training walks through: epoch after epoch, each in its order.
///
/// Any position can be reached with no state but the seed.
#[derive(Clone, Debug)]
pub struct DataOrder {
    seed: u64,
    num_items: usize,
    epoch: u64,
    order: Vec<usize>,
}

impl DataOrder {
    /// The sequence over `num_items` items; `None` without items.
    pub fn new(seed: u64, num_items: usize) -> Option<Self> {
        (num_items > 0).then(|| Self {
            seed,
            num_items,
            epoch: 0,
            order: epoch_order(seed, 0, num_items),
        })
    }

    /// The item at position `position` of the endless sequence.
    pub fn item(&mut self, position: u64) -> usize {
        let num_items = self.num_items as u64;
        let epoch = position / num_items;
        if epoch != self.epoch {
            self.order = epoch_order(self.seed, epoch, self.num_items);
            self.epoch = epoch;
        }
        let offset = usize::try_from(position % num_items).unwrap_or(0);
        self.order[offset]
    }

    /// The epoch that holds `position`, counted from 0.
    pub fn epoch(&self, position: u64) -> u64 {
        position / self.num_items as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn streams_steps_and_indices_do_not_collide() {
        let mut seen = BTreeSet::new();
        for seed in 0..4 {
            for stream in [Stream::DataOrder, Stream::Rollout, Stream::Evaluation] {
                for step in 0..16 {
                    for index in 0..16 {
                        assert!(seen.insert(derive_seed(seed, stream, step, index)));
                    }
                }
            }
        }
    }

    #[test]
    fn the_sequence_of_a_seed_is_frozen() {
        assert_eq!(epoch_order(1, 0, 6), epoch_order(1, 0, 6));
        assert_ne!(epoch_order(1, 0, 50), epoch_order(1, 1, 50));
        assert_ne!(epoch_order(1, 0, 50), epoch_order(2, 0, 50));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_epoch_visits_every_item_once(seed: u64, num_items in 1_usize..40) {
            let mut order = DataOrder::new(seed, num_items).unwrap();
            for epoch in 0..3_u64 {
                let start = epoch * num_items as u64;
                let mut items: Vec<usize> =
                    (start..start + num_items as u64).map(|position| order.item(position)).collect();
                items.sort_unstable();
                prop_assert_eq!(items, (0..num_items).collect::<Vec<_>>());
            }
        }

        #[test]
        fn a_position_needs_no_history(seed: u64, num_items in 1_usize..40, position in 0_u64..200) {
            let mut walked = DataOrder::new(seed, num_items).unwrap();
            let mut last = 0;
            for at in 0..=position {
                last = walked.item(at);
            }
            let mut jumped = DataOrder::new(seed, num_items).unwrap();
            prop_assert_eq!(jumped.item(position), last);
        }
    }
}
