use crate::tokenizer::TokenId;
use crate::{Error, Result};

/// Which episode of a step a row belongs to. All rows of one episode (organizer and workers) share it, and one advantage.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct EpisodeIndex(pub u32);

/// Which of a few kinds a row is, for metrics by kind. Training treats all alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RowLabel {
    /// The first kind, and that of supervised rows.
    #[default]
    First,
    /// The second kind.
    Second,
}

impl RowLabel {
    /// Number of kinds.
    pub const COUNT: usize = 2;

    /// Position among the kinds.
    pub fn index(self) -> usize {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }
}

/// One sequence to train on: a whole context of one agent.
///
/// `loss_mask[i]` says that token `i` was decoded, so that the prediction at position `i - 1` is trained; prompts and injected
/// text are `false`. Log-probabilities are those of the sampler, 0 where nothing was decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingRow {
    ids: Vec<TokenId>,
    loss_mask: Vec<bool>,
    logprobs: Option<Vec<f32>>,
    advantage: f32,
    episode: EpisodeIndex,
    label: RowLabel,
    num_trained: usize,
}

impl TrainingRow {
    /// A supervised row: the prompt is context, every token of the response is trained.
    ///
    /// # Errors
    /// The row has fewer than 2 ids, or no prompt.
    pub fn sft(prompt: &[TokenId], response: &[TokenId]) -> Result<Self> {
        let ids = [prompt, response].concat();
        let loss_mask = (0..ids.len()).map(|index| index >= prompt.len()).collect();
        Self::sft_masked(ids, loss_mask)
    }

    /// A supervised row whose response holds injected text, which is context.
    ///
    /// # Errors
    /// The row has fewer than 2 ids, the mask has another length, or the first token is marked.
    pub fn sft_masked(ids: Vec<TokenId>, loss_mask: Vec<bool>) -> Result<Self> {
        Self::checked(ids, loss_mask, None, 1.0, EpisodeIndex(0))
    }

    /// A row of a sampled episode.
    ///
    /// # Errors
    /// The row has fewer than 2 ids, lengths differ, the first token is marked, or a number is not finite.
    pub fn policy(
        ids: Vec<TokenId>,
        loss_mask: Vec<bool>,
        logprobs: Vec<f32>,
        advantage: f32,
        episode: EpisodeIndex,
    ) -> Result<Self> {
        Self::checked(ids, loss_mask, Some(logprobs), advantage, episode)
    }

    fn checked(
        ids: Vec<TokenId>,
        loss_mask: Vec<bool>,
        logprobs: Option<Vec<f32>>,
        advantage: f32,
        episode: EpisodeIndex,
    ) -> Result<Self> {
        let expected = ids.len();
        if expected < 2 {
            return Err(Error::RowTooShort { got: expected });
        }
        if loss_mask.len() != expected {
            return Err(Error::RowLength {
                field: "loss_mask",
                expected,
                got: loss_mask.len(),
            });
        }
        if loss_mask[0] {
            return Err(Error::RowFirstTrained);
        }
        if let Some(logprobs) = &logprobs {
            if logprobs.len() != expected {
                return Err(Error::RowLength {
                    field: "logprobs",
                    expected,
                    got: logprobs.len(),
                });
            }
            if let Some(&value) = logprobs.iter().find(|value| !value.is_finite()) {
                return Err(Error::RowNotFinite {
                    field: "logprobs",
                    value,
                });
            }
        }
        if !advantage.is_finite() {
            return Err(Error::RowNotFinite {
                field: "advantage",
                value: advantage,
            });
        }
        let num_trained = loss_mask.iter().filter(|&&trained| trained).count();
        Ok(Self {
            ids,
            loss_mask,
            logprobs,
            advantage,
            episode,
            label: RowLabel::default(),
            num_trained,
        })
    }

    /// Sets the kind of the row.
    #[must_use]
    pub fn with_label(mut self, label: RowLabel) -> Self {
        self.label = label;
        self
    }

    /// All tokens, prompt first.
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// Per token: was it decoded, and so trained.
    pub fn loss_mask(&self) -> &[bool] {
        &self.loss_mask
    }

    /// Tokens that other rows may begin with too: those before the one that predicts the first trained token. At least one token is
    /// the row's own.
    pub fn shareable(&self) -> &[TokenId] {
        let first_trained = self.loss_mask.iter().position(|&trained| trained);
        &self.ids[..first_trained.unwrap_or(self.ids.len()) - 1]
    }

    /// The sampler's log-probabilities; `None` for a supervised row.
    pub fn logprobs(&self) -> Option<&[f32]> {
        self.logprobs.as_deref()
    }

    /// The weight of every trained token; 1 for a supervised row.
    pub fn advantage(&self) -> f32 {
        self.advantage
    }

    /// The episode that the row belongs to; 0 for a supervised row.
    pub fn episode(&self) -> EpisodeIndex {
        self.episode
    }

    /// The kind of the row.
    pub fn label(&self) -> RowLabel {
        self.label
    }

    /// Number of tokens.
    #[expect(clippy::len_without_is_empty, reason = "a row is never empty")]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Number of trained tokens.
    pub fn num_trained(&self) -> usize {
        self.num_trained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    #[test]
    fn a_supervised_row_trains_its_response() {
        let row = TrainingRow::sft(&ids(0..2), &ids(2..5)).unwrap();
        assert_eq!(row.loss_mask(), [false, false, true, true, true]);
        assert_eq!((row.len(), row.num_trained(), row.logprobs()), (5, 3, None));
    }

    #[test]
    fn unequal_lengths_and_wild_numbers_are_refused() {
        let episode = EpisodeIndex(3);
        let mask = vec![false, true];
        assert!(TrainingRow::policy(ids(0..2), mask.clone(), vec![0.0; 3], 1.0, episode).is_err());
        assert!(TrainingRow::policy(ids(0..3), mask.clone(), vec![0.0; 3], 1.0, episode).is_err());
        assert!(
            TrainingRow::policy(ids(0..2), mask.clone(), vec![0.0, f32::NAN], 1.0, episode)
                .is_err()
        );
        assert!(
            TrainingRow::policy(
                ids(0..2),
                mask.clone(),
                vec![0.0; 2],
                f32::INFINITY,
                episode
            )
            .is_err()
        );
        assert!(
            TrainingRow::policy(ids(0..2), vec![true, true], vec![0.0; 2], 1.0, episode).is_err()
        );
        assert!(TrainingRow::sft(&ids(0..1), &[]).is_err());
        assert!(TrainingRow::policy(ids(0..2), mask, vec![0.0; 2], 1.0, episode).is_ok());
    }
}
