//! Outcome of the sampling of a step.

use asyncthink_rollout::RewardedEpisode;

/// Groups of episodes that a step sampled. A slot is the place of a group in the order in which all ranks sample.
#[derive(Debug, Default)]
pub(super) struct Sampled {
    /// This rank's episodes, group after group.
    pub(super) episodes: Vec<RewardedEpisode>,
    /// The slot of each of this rank's groups.
    pub(super) slots: Vec<usize>,
    /// Slots of the groups to train on, of all ranks, in ascending order.
    pub(super) kept: Vec<usize>,
    /// Groups of equal rewards, of all ranks.
    pub(super) num_constant: usize,
    /// Rounds of sampling.
    pub(super) num_rounds: usize,
    /// Mean k3 of the KL to the reference over decoded tokens of all ranks, where the reward has a KL term.
    pub(super) kl_reference: Option<f64>,
}
