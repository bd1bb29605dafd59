//! Losses as functions of log-probabilities, and the weights that normalise them.
//!
//! A loss is a weighted sum over trained tokens, `L = sum_t w_t * l_t`. All normalisation lives in the weights, which
//! are computed from the whole batch before the first micro-batch: the sum can then be cut anywhere without changing the
//! gradient.
//!
//! Shape legend: `trained` = tokens with a loss mask of one.

use tch::{Kind, TchError, Tensor};

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

/// What a normaliser is made of: counts over the global batch, that is over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchTotals {
    /// Trained tokens of all rows.
    pub num_trained: usize,
    /// Episodes that have a row.
    pub num_episodes: usize,
}

impl BatchTotals {
    /// Counts `rows`; no episode may have rows elsewhere too.
    pub fn of(rows: &[RowCount]) -> Self {
        let episodes: std::collections::BTreeSet<u32> =
            rows.iter().map(|row| row.episode).collect();
        Self {
            num_trained: rows.iter().map(|row| row.num_trained).sum(),
            num_episodes: episodes.len(),
        }
    }
}

/// What a row contributes to the normaliser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCount {
    /// The episode that the row belongs to.
    pub episode: u32,
    /// Its trained tokens.
    pub num_trained: usize,
}

impl Aggregation {
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

/// Limits of the probability ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// The ratio is clipped below at `1 - low`.
    pub low: f64,
    /// The ratio is clipped above at `1 + high`.
    pub high: f64,
}

/// Standard causal-LM loss of tokens: `sum_t w_t * -logp_t`.
///
/// # Shapes
/// `logp` and `weights` f32 `[trained]`; returns a scalar. Normaliser: in the weights.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn sft_loss(logp: &Tensor, weights: &Tensor) -> Result<Tensor, TchError> {
    logp.f_neg()?.f_mul(weights)?.f_sum(Kind::Float)
}

/// Clipped policy loss of tokens.
///
/// ```text
/// r_t = exp(logp_t - logp_old_t)
/// l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)
/// ```
///
/// # Shapes
/// All f32 `[trained]`; `logp` carries the gradient.
///
/// # Errors
/// When libtorch refuses an operation.
///
/// # Paper
/// arXiv:2510.26658, section 4: one advantage for every token of an organizer and its workers.
pub fn policy_loss(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    clip: Clip,
) -> Result<Tensor, TchError> {
    let ratio = logp.f_sub(logp_old)?.f_exp()?;
    let clipped = ratio.f_clamp(1.0 - clip.low, 1.0 + clip.high)?;
    ratio
        .f_mul(advantages)?
        .f_minimum(&clipped.f_mul(advantages)?)?
        .f_neg()
}

/// One where the clip took the gradient away: the ratio left the range on the side that its advantage pushes to.
///
/// # Shapes
/// All f32 `[trained]`; returns bool `[trained]`.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn is_clipped(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    clip: Clip,
) -> Result<Tensor, TchError> {
    let ratio = logp.f_sub(logp_old)?.f_exp()?;
    let above = ratio
        .f_gt(1.0 + clip.high)?
        .f_logical_and(&advantages.f_gt(0.0)?)?;
    let below = ratio
        .f_lt(1.0 - clip.low)?
        .f_logical_and(&advantages.f_lt(0.0)?)?;
    above.f_logical_or(&below)
}

/// Schulman's `k3` estimate of `KL(policy || reference)` at sampled tokens: `exp(d) - d - 1`, `d = logp_ref - logp`.
///
/// Never negative, and unbiased for samples of the policy.
///
/// # Shapes
/// Both f32 `[trained]`; returns f32 `[trained]`.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn k3(logp: &Tensor, logp_ref: &Tensor) -> Result<Tensor, TchError> {
    let difference = logp_ref.f_sub(logp)?;
    // `exp(d) - 1` in one operation: near d = 0, where training lives, the subtraction would leave rounding only.
    difference.f_expm1()?.f_sub(&difference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(tensor.to_kind(tch::Kind::Double)).unwrap()
    }

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

    #[test]
    fn ratios_beyond_the_clip_earn_nothing_more() {
        let clip = Clip {
            low: 0.2,
            high: 0.3,
        };
        let logp = vector(&[0.5, 0.5, -0.5, -0.5, 0.1]);
        let old = vector(&[0.0; 5]);
        let advantages = vector(&[1.0, -1.0, 1.0, -1.0, 1.0]);
        let loss = values(&policy_loss(&logp, &old, &advantages, clip).unwrap());
        let (up, down) = (0.5_f64.exp(), (-0.5_f64).exp());
        let expected = [-1.3, up, -down, 0.8, -(0.1_f64.exp())];
        for (got, want) in loss.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let clipped = is_clipped(&logp, &old, &advantages, clip).unwrap();
        assert_eq!(values(&clipped), [1.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn k3_is_zero_at_equality_and_positive_elsewhere() {
        let got = values(&k3(&vector(&[-1.0, -1.0, -1.0]), &vector(&[-1.0, -0.5, -2.0])).unwrap());
        assert!(got[0].abs() < 1e-7);
        assert!((got[1] - (0.5_f64.exp() - 1.5)).abs() < 1e-6);
        assert!((got[2] - (-1.0_f64).exp()).abs() < 1e-6);
    }
}
