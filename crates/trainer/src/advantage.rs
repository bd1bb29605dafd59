//! Group-relative advantages.
//!
//! The unit is the episode: an organizer and all of its workers share one reward and therefore one
//! advantage. A group of one has no baseline, so [`Group`] cannot hold it.

/// Rewards of the episodes that answer one prompt; never fewer than two.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a>(&'a [f64]);

impl<'a> Group<'a> {
    /// A group, or `None` for fewer than two rewards.
    pub fn new(rewards: &'a [f64]) -> Option<Self> {
        (rewards.len() >= 2).then_some(Self(rewards))
    }

    /// Mean reward of the group.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Whether every episode earned the same reward, which leaves nothing to learn from.
    pub fn is_constant(&self) -> bool {
        self.0
            .windows(2)
            .all(|pair| pair[0].to_bits() == pair[1].to_bits())
    }

    /// Sample standard deviation (`n - 1` in the denominator, as TRL and verl have it).
    fn std(&self) -> f64 {
        let mean = self.mean();
        let sum: f64 = self.0.iter().map(|reward| (reward - mean).powi(2)).sum();
        (sum / (self.0.len() - 1) as f64).sqrt()
    }
}

/// How rewards of a group become advantages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Advantage {
    /// `A = R - mean`.
    MeanCentred,
    /// `A = (R - mean) / (std + eps)`.
    MeanStd {
        /// Keeps the quotient finite in a group of nearly equal rewards.
        eps: f64,
    },
}

impl Advantage {
    /// One advantage per episode of the group, in its order.
    ///
    /// ```text
    /// mean_centred   A_i = R_i - mean(R)
    /// mean_std       A_i = (R_i - mean(R)) / (std(R) + eps)
    /// ```
    ///
    /// A group of equal rewards gets exact zeros: the rounding of the mean must not become a signal
    /// that a division by `std + eps` blows up.
    pub fn of(self, group: Group<'_>) -> Vec<f64> {
        if group.is_constant() {
            return vec![0.0; group.0.len()];
        }
        let mean = group.mean();
        let scale = match self {
            Self::MeanCentred => 1.0,
            Self::MeanStd { eps } => 1.0 / (group.std() + eps),
        };
        group
            .0
            .iter()
            .map(|reward| (reward - mean) * scale)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Advantage; 2] = [Advantage::MeanCentred, Advantage::MeanStd { eps: 1e-4 }];

    #[test]
    fn a_group_of_one_does_not_exist() {
        assert!(Group::new(&[]).is_none());
        assert!(Group::new(&[1.0]).is_none());
        assert!(Group::new(&[1.0, 0.0]).is_some());
    }

    #[test]
    fn equal_rewards_give_exact_zeros() {
        let rewards = [0.1; 3];
        for kind in KINDS {
            assert_eq!(kind.of(Group::new(&rewards).unwrap()), [0.0; 3]);
        }
    }

    #[test]
    fn small_group_by_hand() {
        let rewards = [1.0, 0.0, 0.0, 1.0];
        let group = Group::new(&rewards).unwrap();
        assert_eq!(Advantage::MeanCentred.of(group), [0.5, -0.5, -0.5, 0.5]);
        let std = (1.0_f64 / 3.0).sqrt();
        let with_std = Advantage::MeanStd { eps: 0.0 }.of(group);
        assert!((with_std[0] - 0.5 / std).abs() < 1e-12);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn advantages_sum_to_zero_and_follow_permutations(
            rewards in prop::collection::vec(-2.0_f64..2.0, 2..9),
            turn in 0_usize..9,
        ) {
            for kind in KINDS {
                let advantages = kind.of(Group::new(&rewards).unwrap());
                prop_assert!(advantages.iter().sum::<f64>().abs() < 1e-6);
                let mut turned = rewards.clone();
                turned.rotate_left(turn % rewards.len());
                let mut expected = advantages.clone();
                expected.rotate_left(turn % rewards.len());
                for (a, b) in kind.of(Group::new(&turned).unwrap()).iter().zip(&expected) {
                    prop_assert!((a - b).abs() < 1e-6);
                }
            }
        }

        #[test]
        fn advantages_ignore_a_shift_of_all_rewards(
            rewards in prop::collection::vec(-2.0_f64..2.0, 2..9),
            shift in -3.0_f64..3.0,
        ) {
            let shifted: Vec<f64> = rewards.iter().map(|reward| reward + shift).collect();
            let before = Advantage::MeanCentred.of(Group::new(&rewards).unwrap());
            let after = Advantage::MeanCentred.of(Group::new(&shifted).unwrap());
            for (a, b) in before.iter().zip(&after) {
                prop_assert!((a - b).abs() < 1e-9);
            }
        }

        #[test]
        fn a_better_reward_never_gets_a_smaller_advantage(
            rewards in prop::collection::vec(-2.0_f64..2.0, 2..9),
        ) {
            for kind in KINDS {
                let advantages = kind.of(Group::new(&rewards).unwrap());
                for i in 0..rewards.len() {
                    for j in 0..rewards.len() {
                        if rewards[i] > rewards[j] {
                            prop_assert!(advantages[i] >= advantages[j]);
                        }
                    }
                }
            }
        }
    }
}
