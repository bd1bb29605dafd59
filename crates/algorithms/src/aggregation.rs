//! Loss aggregation: per-token weights that carry the whole normaliser.
//!
//! A loss is a weighted sum over trained tokens, `L = sum_t w_t * l_t`. The weights are computed from the whole batch before
//! the first micro-batch: the sum can then be cut anywhere without changing the gradient.

use asyncthink_recipe::{GrpoSection, LossAggregation};

/// How per-token losses become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Divide by the trained tokens of the global batch.
    TokenMean,
    /// Mean over an episode's tokens, then over the episodes of the global batch.
    EpisodeMean,
    /// Divide by episodes of the global batch times a fixed length.
    ConstantLength {
        /// The fixed length.
        tokens: u64,
    },
}

/// Counts over the global batch, summed over all ranks; the loss normaliser is computed from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchTotals {
    /// Trained tokens of all rows.
    pub num_trained: usize,
    /// Episodes that have a row.
    pub num_episodes: usize,
}

impl BatchTotals {
    /// Counts `rows`, which hold every row of their episodes.
    pub fn of(rows: &[RowCount]) -> Self {
        let episodes: std::collections::BTreeSet<u32> =
            rows.iter().map(|row| row.episode).collect();
        Self {
            num_trained: rows.iter().map(|row| row.num_trained).sum(),
            num_episodes: episodes.len(),
        }
    }
}

/// Counts of a row for the loss normaliser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCount {
    /// The episode that the row belongs to.
    pub episode: u32,
    /// Trained tokens of the row.
    pub num_trained: usize,
}

impl Aggregation {
    /// The aggregation that `[grpo]` names; `None` where `constant_length_tokens` is missing, which the recipe's checks rule out.
    pub fn of(section: &GrpoSection) -> Option<Self> {
        Some(match section.loss_aggregation {
            LossAggregation::TokenMean => Self::TokenMean,
            LossAggregation::EpisodeMean => Self::EpisodeMean,
            LossAggregation::ConstantLength => Self::ConstantLength {
                tokens: section.constant_length_tokens? as u64,
            },
        })
    }

    /// The weight of each trained token, one value per row.
    ///
    /// ```text
    /// token_mean        w = 1 / sum_rows(num_trained)
    /// episode_mean      w = 1 / (num_episodes * trained tokens of the row's episode)
    /// constant_length   w = 1 / (num_episodes * tokens)
    /// ```
    ///
    /// The sums are over the global batch, which `totals` counts; `rows` may be a part of it, with whole episodes. Rows of
    /// one episode are an organizer and its workers; they need not be adjacent.
    pub fn weights(self, rows: &[RowCount], totals: BatchTotals) -> Vec<f64> {
        let mut per_episode = std::collections::BTreeMap::<u32, usize>::new();
        for row in rows {
            *per_episode.entry(row.episode).or_default() += row.num_trained;
        }
        let num_episodes = totals.num_episodes as f64;
        let inverse = |count: f64| if count > 0.0 { 1.0 / count } else { 0.0 };
        rows.iter()
            .map(|row| match self {
                Self::TokenMean => inverse(totals.num_trained as f64),
                Self::EpisodeMean => inverse(num_episodes * per_episode[&row.episode] as f64),
                Self::ConstantLength { tokens } => inverse(num_episodes * tokens as f64),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [RowCount; 3] = [
        RowCount {
            episode: 4,
            num_trained: 3,
        },
        RowCount {
            episode: 9,
            num_trained: 4,
        },
        RowCount {
            episode: 4,
            num_trained: 1,
        },
    ];

    #[test]
    fn weights_by_hand() {
        assert_eq!(
            Aggregation::TokenMean.weights(&ROWS, BatchTotals::of(&ROWS)),
            [0.125; 3]
        );
        assert_eq!(
            Aggregation::EpisodeMean.weights(&ROWS, BatchTotals::of(&ROWS)),
            [0.125; 3]
        );
        assert_eq!(
            Aggregation::ConstantLength { tokens: 10 }.weights(&ROWS, BatchTotals::of(&ROWS)),
            [0.05; 3]
        );
        let uneven = [ROWS[0], ROWS[1]];
        assert_eq!(
            Aggregation::EpisodeMean.weights(&uneven, BatchTotals::of(&uneven)),
            [1.0 / 6.0, 0.125]
        );
    }

    #[test]
    fn token_weights_sum_to_one() {
        for aggregation in [Aggregation::TokenMean, Aggregation::EpisodeMean] {
            let weights = aggregation.weights(&ROWS, BatchTotals::of(&ROWS));
            let total: f64 = ROWS
                .iter()
                .zip(&weights)
                .map(|(row, weight)| row.num_trained as f64 * weight)
                .sum();
            assert!((total - 1.0).abs() < 1e-12);
        }
    }
}
