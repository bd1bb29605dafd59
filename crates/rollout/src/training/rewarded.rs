//! An episode with its reward.

use asyncthink_algorithms::{EpisodeScore, RewardParts, RewardRule, overlong_share};
use asyncthink_data::Tokenizer;
use asyncthink_recipe::RewardSection;
use asyncthink_tasks::Problem;

use crate::episode::Episode;
use crate::graded::GradedEpisode;
use crate::settings::RolloutSettings;

/// A graded episode with its reward.
#[derive(Clone, Debug)]
pub struct RewardedEpisode {
    /// Graded episode.
    pub graded: GradedEpisode,
    /// `eta / c` as rewarded, which may leave out workers that nobody joined; `None` for a format error.
    pub rewarded_eta_ratio: Option<f64>,
    /// The reward.
    pub reward: RewardParts,
    /// Penalty for overlong agents, taken off the reward before it is compared with those of the group.
    pub penalty: f64,
    /// Penalty for the distance to the reference model, taken off likewise.
    pub kl_penalty: f64,
    /// The advantage of the organizer; by default that of all workers too.
    pub advantage: f64,
    /// The advantage of the workers.
    pub worker_advantage: f64,
}

impl RewardedEpisode {
    /// The reward that tells whether a group has a signal: no two episodes are equally far from the reference, which says little.
    pub fn task_reward(&self) -> f64 {
        self.reward.total - self.penalty
    }

    /// The reward that advantages are made from.
    pub fn shaped_reward(&self) -> f64 {
        self.task_reward() - self.kl_penalty
    }
}

/// Soft punishment of agents near a token limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OverlongRule {
    /// Last tokens before a limit in which the penalty rises.
    pub buffer_tokens: usize,
    /// Penalty at the limit.
    pub penalty: f64,
    /// Limit of a worker.
    pub worker_max_tokens: usize,
    /// Limit of the organizer before each Join.
    pub organizer_max_tokens: usize,
    /// Limit of the organizer over the episode, if there is one.
    pub organizer_total_tokens: Option<usize>,
}

impl OverlongRule {
    /// The rule that a recipe describes, over the limits of `settings`; `None` without one.
    pub fn of(section: &RewardSection, settings: &RolloutSettings) -> Option<Self> {
        Some(Self {
            buffer_tokens: section.overlong_buffer_tokens?,
            penalty: section.overlong_penalty,
            worker_max_tokens: settings.worker_max_tokens,
            organizer_max_tokens: settings.organizer_max_tokens,
            organizer_total_tokens: settings.organizer_total_tokens,
        })
    }

    /// The penalty of an episode: that of its worst agent.
    pub fn penalty_of(&self, episode: &Episode) -> f64 {
        let share = |tokens, limit| overlong_share(tokens, limit, self.buffer_tokens);
        let organizer = &episode.organizer;
        let before_join = share(organizer.longest_stretch(), self.organizer_max_tokens);
        let total = self
            .organizer_total_tokens
            .map_or(0.0, |limit| share(organizer.num_decoded(), limit));
        let workers = episode.workers.iter();
        let workers =
            workers.map(|worker| share(worker.record.num_decoded(), self.worker_max_tokens));
        self.penalty * workers.fold(before_join.max(total), f64::max)
    }
}

/// Grades an episode and computes its reward; the advantage is 0 until its group is known. `count_unjoined` is about the
/// reward: the metrics of the episode count every worker.
pub fn reward_episode(
    episode: Episode,
    problem: &Problem,
    tokenizer: &Tokenizer,
    rule: &RewardRule,
    count_unjoined: bool,
) -> RewardedEpisode {
    let graded = GradedEpisode::new(episode, problem).with_attempts(problem, tokenizer);
    let rewarded_eta_ratio = graded
        .episode
        .timeline
        .as_ref()
        .map(|timeline| timeline.concurrency(count_unjoined).eta_ratio);
    let score = match rewarded_eta_ratio {
        Some(eta_ratio) => EpisodeScore::Valid {
            accuracy: graded.accuracy,
            eta_ratio,
        },
        None => EpisodeScore::FormatError,
    };
    RewardedEpisode {
        rewarded_eta_ratio,
        reward: rule.reward(score),
        penalty: 0.0,
        kl_penalty: 0.0,
        advantage: 0.0,
        worker_advantage: 0.0,
        graded,
    }
}
