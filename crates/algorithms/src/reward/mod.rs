//! The reward of an episode: accuracy plus a price on concurrency.
//!
//! # Paper
//! arXiv:2510.26658, Eq. (2) and (3). We differ in four options: the
//! concurrency term may be paid only where the answer earns something (`gate_concurrency`), workers
//! that nobody joined may be left out of eta (`count_unjoined = false`, applied where eta is
//! computed), `lambda` may move linearly to another value over the run, and agents near a token
//! limit may be punished (`overlong_buffer_tokens`).

mod concurrency;
mod kl;
mod lambda;
mod overlong;

use asyncthink_recipe::RewardSection;
use serde::{Deserialize, Serialize};

pub use concurrency::{concurrency, is_paid};
pub use kl::kl_of_token;
pub use lambda::LambdaSchedule;
pub use overlong::overlong_share;

/// What the reward needs to know about an episode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EpisodeScore {
    /// The episode broke the protocol.
    FormatError,
    /// The episode ended with an answer.
    Valid {
        /// `R_A`, in `[0, 1]`.
        accuracy: f64,
        /// `eta / c`, in `[1/c, 1]`.
        eta_ratio: f64,
    },
}

/// The parts that make up one episode's reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardParts {
    /// `R_A`; 0 for a format error.
    pub accuracy: f64,
    /// `R_eta` as paid, after gating; 0 for a format error.
    pub concurrency: f64,
    /// `R`.
    pub total: f64,
}

/// The constants of Eq. 2 and 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RewardRule {
    /// Weight of the concurrency term.
    pub lambda: f64,
    /// `eta / c` at which the concurrency term saturates; above `1/c`.
    pub tau: f64,
    /// `R_FE`, the reward of an episode with a format error.
    pub format_error: f64,
    /// Pays the concurrency term only where `R_A > 0`.
    pub gate_concurrency: bool,
}

impl RewardRule {
    /// The rule of `[grpo.reward]` at one step's `lambda`.
    pub fn of(section: &RewardSection, lambda: f64) -> Self {
        Self {
            lambda,
            tau: section.tau,
            format_error: section.format_error,
            gate_concurrency: section.gate_concurrency,
        }
    }

    /// The reward of one episode.
    ///
    /// ```text
    /// R_eta = min(eta/c, tau) / tau
    /// R     = R_FE                     with a format error
    ///         R_A + lambda * R_eta     otherwise
    /// ```
    pub fn reward(&self, score: EpisodeScore) -> RewardParts {
        match score {
            EpisodeScore::FormatError => RewardParts {
                accuracy: 0.0,
                concurrency: 0.0,
                total: self.format_error,
            },
            EpisodeScore::Valid {
                accuracy,
                eta_ratio,
            } => {
                let concurrency = if is_paid(self.gate_concurrency, accuracy) {
                    concurrency(eta_ratio, self.tau)
                } else {
                    0.0
                };
                RewardParts {
                    accuracy,
                    concurrency,
                    total: accuracy + self.lambda * concurrency,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RewardRule = RewardRule {
        lambda: 0.5,
        tau: 0.8,
        format_error: -1.0,
        gate_concurrency: false,
    };

    #[test]
    fn equation_two_and_three_by_hand() {
        let parts = RULE.reward(EpisodeScore::Valid {
            accuracy: 0.25,
            eta_ratio: 0.6,
        });
        assert!((parts.concurrency - 0.75).abs() < 1e-12);
        assert!((parts.total - (0.25 + 0.5 * 0.75)).abs() < 1e-12);
    }

    #[test]
    fn concurrency_saturates_at_tau() {
        for eta_ratio in [0.8, 0.9, 1.0] {
            let parts = RULE.reward(EpisodeScore::Valid {
                accuracy: 0.0,
                eta_ratio,
            });
            assert!((parts.concurrency - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_format_error_earns_its_own_reward_only() {
        assert!((RULE.reward(EpisodeScore::FormatError).total + 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_gate_pays_concurrency_only_with_accuracy() {
        let gated = RewardRule {
            gate_concurrency: true,
            ..RULE
        };
        let wrong = gated.reward(EpisodeScore::Valid {
            accuracy: 0.0,
            eta_ratio: 1.0,
        });
        assert!(wrong.total.abs() < 1e-12);
        let right = gated.reward(EpisodeScore::Valid {
            accuracy: 0.5,
            eta_ratio: 1.0,
        });
        assert!((right.total - 1.0).abs() < 1e-12);
    }
}
