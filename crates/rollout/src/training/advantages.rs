//! Advantages of the episodes of a group.

use asyncthink_algorithms::{AdvantageEstimator, Group};
use asyncthink_recipe::AdvantageGroup;

use super::rewarded::RewardedEpisode;
use crate::agent::AgentRecord;

/// How the rewards of a group become advantages of organizers and workers.
#[derive(Clone, Copy, Debug)]
pub struct AdvantageRule<'a> {
    /// The estimator.
    pub estimator: &'a dyn AdvantageEstimator,
    /// What an advantage is relative to.
    pub group: AdvantageGroup,
    /// Factor on the advantage of workers.
    pub worker_weight: f64,
}

impl<'a> AdvantageRule<'a> {
    /// One advantage for an organizer and its workers, as in the paper.
    pub fn shared(estimator: &'a dyn AdvantageEstimator) -> Self {
        Self {
            estimator,
            group: AdvantageGroup::Episode,
            worker_weight: 1.0,
        }
    }
}

/// Gives every episode the advantages of its reward in its group: `episodes` holds group after group of `group_size`.
///
/// Episodes with a format error stay in their group. Tells of each group whether it earned one reward throughout, but for the distance
/// to the reference: from such a group there is nothing to learn.
///
/// # Panics
/// If `group_size` is below 2 or does not divide the number of episodes; the recipe's checks rule that out.
pub fn assign_advantages(
    episodes: &mut [RewardedEpisode],
    group_size: usize,
    rule: AdvantageRule<'_>,
) -> Vec<bool> {
    assert!(
        episodes.len().is_multiple_of(group_size),
        "groups must be whole"
    );
    episodes
        .chunks_exact_mut(group_size)
        .map(|group| {
            let of = |reward: fn(&RewardedEpisode) -> f64| -> Vec<f64> {
                group.iter().map(reward).collect()
            };
            let (shaped, of_task) = (
                of(RewardedEpisode::shaped_reward),
                of(RewardedEpisode::task_reward),
            );
            let whole = |rewards| Group::new(rewards).expect("a group has at least two episodes");
            let shared = whole(&shaped).advantages(rule.estimator);
            let is_constant = whole(&of_task).is_constant();
            let of_workers = match rule.group {
                AdvantageGroup::Episode => shared.clone(),
                AdvantageGroup::Role => worker_advantages(group, rule.estimator),
            };
            for (episode, (own, of_workers)) in group.iter_mut().zip(shared.iter().zip(of_workers))
            {
                episode.advantage = *own;
                episode.worker_advantage = rule.worker_weight * of_workers;
            }
            is_constant
        })
        .collect()
}

/// The advantage of the workers of each episode among all workers of the group, each of which earned its episode's reward; 0 where the
/// group has fewer than two.
fn worker_advantages(group: &[RewardedEpisode], estimator: &dyn AdvantageEstimator) -> Vec<f64> {
    let num_workers = |episode: &RewardedEpisode| {
        let records = episode.graded.episode.workers.iter();
        let decoded = records.map(|worker| AgentRecord::num_decoded(&worker.record));
        decoded.filter(|&count| count > 0).count()
    };
    let rewards: Vec<f64> = group
        .iter()
        .flat_map(|episode| vec![episode.shaped_reward(); num_workers(episode)])
        .collect();
    let Some(all) = Group::new(&rewards) else {
        return vec![0.0; group.len()];
    };
    let mut of_rows = all.advantages(estimator).into_iter();
    group
        .iter()
        .map(|episode| {
            // Equal rewards have equal advantages: the first worker's is that of all.
            let own: Vec<f64> = of_rows.by_ref().take(num_workers(episode)).collect();
            own.first().copied().unwrap_or(0.0)
        })
        .collect()
}
