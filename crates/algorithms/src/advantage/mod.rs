//! Group-relative advantages, one file per estimator.
//!
//! The unit is the episode: an organizer and all of its workers share one reward and therefore one advantage. A group of one has no
//! baseline, so [`Group`] cannot hold it. Adding an estimator: its file here, and one line in [`registry`].

mod estimator;
mod mean_centred;
mod mean_std;
mod registry;
mod rloo;

pub use estimator::{AdvantageEstimator, BuildAdvantage, Group};
pub use mean_centred::MeanCentred;
pub use mean_std::MeanStd;
pub use registry::registry;
pub use rloo::Rloo;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [&dyn AdvantageEstimator; 3] = [&MeanCentred, &MeanStd { eps: 1e-4 }, &Rloo];

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
            assert_eq!(Group::new(&rewards).unwrap().advantages(kind), [0.0; 3]);
        }
    }

    #[test]
    fn small_group_by_hand() {
        let rewards = [1.0, 0.0, 0.0, 1.0];
        let group = Group::new(&rewards).unwrap();
        assert_eq!(group.advantages(&MeanCentred), [0.5, -0.5, -0.5, 0.5]);
        let std = (1.0_f64 / 3.0).sqrt();
        let with_std = group.advantages(&MeanStd { eps: 0.0 });
        assert!((with_std[0] - 0.5 / std).abs() < 1e-12);
        // 1 against the mean of 0, 0 and 1.
        let leave_one_out = group.advantages(&Rloo);
        for (got, expected) in leave_one_out.iter().zip([2.0, -2.0, -2.0, 2.0]) {
            assert!((got - expected / 3.0).abs() < 1e-12);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn advantages_sum_to_zero_and_follow_permutations(
            rewards in prop::collection::vec(-2.0_f64..2.0, 2..9),
            turn in 0_usize..9,
        ) {
            for kind in KINDS {
                let advantages = Group::new(&rewards).unwrap().advantages(kind);
                prop_assert!(advantages.iter().sum::<f64>().abs() < 1e-6);
                let mut turned = rewards.clone();
                turned.rotate_left(turn % rewards.len());
                let mut expected = advantages.clone();
                expected.rotate_left(turn % rewards.len());
                for (a, b) in Group::new(&turned).unwrap().advantages(kind).iter().zip(&expected) {
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
            for kind in [&MeanCentred as &dyn AdvantageEstimator, &Rloo] {
                let before = Group::new(&rewards).unwrap().advantages(kind);
                let after = Group::new(&shifted).unwrap().advantages(kind);
                for (a, b) in before.iter().zip(&after) {
                    prop_assert!((a - b).abs() < 1e-9);
                }
            }
        }

        #[test]
        fn a_better_reward_never_gets_a_smaller_advantage(
            rewards in prop::collection::vec(-2.0_f64..2.0, 2..9),
        ) {
            for kind in KINDS {
                let advantages = Group::new(&rewards).unwrap().advantages(kind);
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
