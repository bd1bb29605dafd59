//! An episode with its reward.

use asyncthink_algorithms::{EpisodeScore, RewardParts, RewardRule};
use asyncthink_data::Tokenizer;
use asyncthink_tasks::Problem;

use crate::episode::Episode;
use crate::graded::GradedEpisode;

/// A graded episode with its reward.
#[derive(Clone, Debug)]
pub struct RewardedEpisode {
    /// Graded episode.
    pub graded: GradedEpisode,
    /// `eta / c` as rewarded, which may leave out workers that nobody joined; `None` for a format error.
    pub rewarded_eta_ratio: Option<f64>,
    /// The reward.
    pub reward: RewardParts,
    /// The advantage, one for the organizer and all workers.
    pub advantage: f64,
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
        advantage: 0.0,
        graded,
    }
}
