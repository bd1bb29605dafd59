//! Rows become tensors.
//!
//! Rows are laid end to end with no padding; attention stays inside each. The hidden state at position `i - 1` of a row
//! predicts its token `i`, so a loss mask of one at `i` selects position `i - 1` and target `ids[i]`.

use asyncthink_algorithms::TokenBatch;
use asyncthink_data::TrainingRow;
use asyncthink_model::Segments;
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Some rows of a batch, on the device.
#[derive(Debug)]
pub struct MicroBatch {
    /// Token ids, i64 `[tokens]`.
    pub ids: Tensor,
    /// Which tokens are a row's, and what they attend to.
    pub segments: Segments,
    /// Position in `ids` whose hidden state predicts each trained token, i64 `[trained]`.
    pub positions: Tensor,
    /// The trained tokens, i64 `[trained]`.
    pub targets: Tensor,
    /// Weight of each trained token in the loss, f32 `[trained]`.
    pub weights: Tensor,
    /// The sampler's log-probabilities, f32 `[trained]`; zeros for supervised rows.
    pub logp_sampler: Tensor,
    /// The advantage of each trained token, f32 `[trained]`.
    pub advantages: Tensor,
    /// The row of each trained token, counted from 0, i64 `[trained]`.
    pub rows: Tensor,
    /// The kind of each trained token's row, i64 `[trained]`.
    pub labels: Tensor,
}

impl MicroBatch {
    /// Lays out `rows`; `weights` holds one value per row, which each of its trained tokens gets.
    ///
    /// # Errors
    /// When the device refuses the memory.
    pub fn assemble(rows: &[(&TrainingRow, f64)], device: Device) -> Result<Self> {
        let mut ids = Vec::new();
        let mut segment_lens = Vec::with_capacity(rows.len());
        let mut positions = Vec::new();
        let mut targets = Vec::new();
        let mut weights = Vec::new();
        let mut logp_sampler = Vec::new();
        let mut advantages = Vec::new();
        let mut row_indices = Vec::new();
        let mut labels = Vec::new();
        for (row_index, (row, weight)) in rows.iter().enumerate() {
            let start = ids.len();
            ids.extend(row.ids().iter().map(|token| i64::from(token.0)));
            segment_lens.push(to_i64(row.len()));
            for (index, _) in row
                .loss_mask()
                .iter()
                .enumerate()
                .filter(|(_, trained)| **trained)
            {
                positions.push(to_i64(start + index - 1));
                targets.push(ids[start + index]);
                // Half an ulp of an f32 weight is far below the rounding of the sum that it goes into.
                #[expect(clippy::cast_possible_truncation, reason = "weights enter an f32 sum")]
                weights.push(*weight as f32);
                logp_sampler.push(row.logprobs().map_or(0.0, |logprobs| logprobs[index]));
                advantages.push(row.advantage());
                row_indices.push(to_i64(row_index));
                labels.push(to_i64(row.label().index()));
            }
        }
        let integers = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        let floats = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_device(device);
        Ok(Self {
            ids: integers(&ids)?,
            segments: Segments::separate(&segment_lens)?,
            positions: integers(&positions)?,
            targets: integers(&targets)?,
            weights: floats(&weights)?,
            logp_sampler: floats(&logp_sampler)?,
            advantages: floats(&advantages)?,
            rows: integers(&row_indices)?,
            labels: integers(&labels)?,
        })
    }

    /// Tokens that the decoder computes.
    pub fn num_tokens(&self) -> usize {
        self.ids.numel()
    }

    /// Tokens of the rows; what is computed beyond them is padding.
    pub fn num_row_tokens(&self) -> usize {
        usize::try_from(self.segments.num_tokens()).unwrap_or(0)
    }

    /// Tokens that the loss is over.
    pub fn num_trained(&self) -> usize {
        self.targets.numel()
    }

    /// Rows.
    pub(crate) fn num_rows(&self) -> i64 {
        to_i64(self.segments.len())
    }

    /// All trained tokens, for a loss; `logp`, `logp_old` and `logp_reference` f32 `[trained]`.
    pub(crate) fn tokens<'a>(
        &'a self,
        logp: &'a Tensor,
        logp_old: &'a Tensor,
        logp_reference: Option<&'a Tensor>,
    ) -> TokenBatch<'a> {
        TokenBatch {
            logp,
            logp_old,
            logp_sampler: &self.logp_sampler,
            logp_reference,
            advantages: &self.advantages,
            weights: &self.weights,
            rows: &self.rows,
            num_rows: self.num_rows(),
        }
    }

    /// The part `start .. start + len` of a per-trained-token tensor.
    pub(crate) fn part(tensor: &Tensor, range: &std::ops::Range<i64>) -> Result<Tensor> {
        Ok(tensor.f_narrow(0, range.start, range.end - range.start)?)
    }

    /// Hidden states that predict the trained tokens, out of those of all tokens.
    ///
    /// # Shapes
    /// `hidden` `[tokens, hidden]`; returns `[trained, hidden]`.
    ///
    /// # Errors
    /// When libtorch refuses the operation.
    pub fn select_trained(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.f_index_select(0, &self.positions)?)
    }
}

/// A host copy of an f32 vector in f64.
pub(crate) fn to_host(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::<f64>::try_from(
        tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?,
    )?)
}

fn to_i64(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use asyncthink_data::{EpisodeIndex, TokenId};

    fn integers(tensor: &Tensor) -> Vec<i64> {
        Vec::<i64>::try_from(tensor).unwrap()
    }

    #[test]
    fn rows_lie_end_to_end_and_targets_are_shifted_by_one() {
        let ids = |values: &[u32]| values.iter().copied().map(TokenId).collect::<Vec<_>>();
        let first = TrainingRow::policy(
            ids(&[10, 11, 12, 13]),
            vec![false, true, false, true],
            vec![0.0, -1.0, 0.0, -2.0],
            0.5,
            EpisodeIndex(0),
        )
        .unwrap();
        let second = TrainingRow::policy(
            ids(&[20, 21]),
            vec![false, true],
            vec![0.0, -3.0],
            -0.5,
            EpisodeIndex(1),
        )
        .unwrap();
        let batch = MicroBatch::assemble(&[(&first, 0.25), (&second, 0.5)], Device::Cpu).unwrap();
        assert_eq!(integers(&batch.ids), [10, 11, 12, 13, 20, 21]);
        assert_eq!(batch.segments.lens(), [4, 2]);
        assert_eq!(integers(&batch.positions), [0, 2, 4]);
        assert_eq!(integers(&batch.targets), [11, 13, 21]);
        assert_eq!(to_host(&batch.weights).unwrap(), [0.25, 0.25, 0.5]);
        assert_eq!(to_host(&batch.logp_sampler).unwrap(), [-1.0, -2.0, -3.0]);
        assert_eq!(to_host(&batch.advantages).unwrap(), [0.5, 0.5, -0.5]);
        assert_eq!(integers(&batch.rows), [0, 0, 1]);
    }
}
