//! Rows become tensors.
//!
//! Rows are laid end to end with no padding; attention stays inside each. What a row has in common with the one before it is
//! left out, and its remaining tokens attend to those of the other row: rows that begin alike are a tree of segments. The hidden
//! state at position `i - 1` of a row predicts its token `i`, so a loss mask of one at `i` selects position `i - 1` and target
//! `ids[i]`. Positions that predict a trained token are never left out.

use asyncthink_algorithms::TokenBatch;
use asyncthink_data::TrainingRow;
use asyncthink_model::{Segment, Segments};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

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
    num_rows: usize,
    num_row_tokens: usize,
}

impl MicroBatch {
    /// Lays out `rows` apart; `weights` holds one value per row, which each of its trained tokens gets.
    ///
    /// # Errors
    /// When the device refuses the memory.
    pub fn assemble(rows: &[(&TrainingRow, f64)], device: Device) -> Result<Self> {
        Self::assemble_shared(rows, &vec![0; rows.len()], device)
    }

    /// Lays out `rows`; `shared` holds for each how many tokens it has in common with the row before it, as
    /// [`asyncthink_data::Packer`] finds them.
    ///
    /// # Errors
    /// When a row does not begin so, or shares a position that predicts a trained token; or the device refuses the memory.
    pub fn assemble_shared(
        rows: &[(&TrainingRow, f64)],
        shared: &[usize],
        device: Device,
    ) -> Result<Self> {
        let lens: Vec<usize> = rows.iter().map(|(row, _)| row.len()).collect();
        let mut ids: Vec<i64> = Vec::new();
        let mut positions = Vec::new();
        let mut targets = Vec::new();
        let mut weights = Vec::new();
        let mut logp_sampler = Vec::new();
        let mut advantages = Vec::new();
        let mut row_indices = Vec::new();
        let mut labels = Vec::new();
        for (row_index, (&(row, weight), &shared)) in rows.iter().zip(shared).enumerate() {
            let before = row_index
                .checked_sub(1)
                .map_or(&[][..], |before| rows[before].0.ids());
            if shared > row.shareable().len() || before.get(..shared) != row.ids().get(..shared) {
                return Err(Error::stage(
                    "laying out rows",
                    format!("row {row_index} cannot share {shared} tokens with the row before it"),
                ));
            }
            let start = ids.len();
            let id = |index: usize| i64::from(row.ids()[index].0);
            ids.extend((shared..row.len()).map(id));
            for (index, _) in row
                .loss_mask()
                .iter()
                .enumerate()
                .filter(|(_, trained)| **trained)
            {
                positions.push(to_i64(start + index - 1 - shared));
                targets.push(id(index));
                // Half an ulp of an f32 weight is far below the rounding of the sum that it goes into.
                #[expect(clippy::cast_possible_truncation, reason = "weights enter an f32 sum")]
                weights.push(weight as f32);
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
            segments: tree(&lens, shared)?,
            num_rows: rows.len(),
            num_row_tokens: lens.iter().sum(),
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

    /// Tokens of the rows; more than are computed where rows share some.
    pub fn num_row_tokens(&self) -> usize {
        self.num_row_tokens
    }

    /// Tokens that the loss is over.
    pub fn num_trained(&self) -> usize {
        self.targets.numel()
    }

    /// Rows.
    pub(crate) fn num_rows(&self) -> i64 {
        to_i64(self.num_rows)
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

/// Segments of rows of which each leaves out what it shares with the row before it.
fn tree(lens: &[usize], shared: &[usize]) -> Result<Segments> {
    // Where later rows branch off from each row: what they share with it, shortest first.
    let mut branches: Vec<Vec<usize>> = vec![Vec::new(); lens.len()];
    let mut later: Vec<usize> = Vec::new();
    for row in (0..lens.len()).rev() {
        branches[row] = later
            .iter()
            .copied()
            .filter(|&end| end > shared[row])
            .collect();
        while later.last().is_some_and(|&end| end >= shared[row]) {
            later.pop();
        }
        later.push(shared[row]);
    }
    let mut segments = Vec::with_capacity(lens.len());
    // Segments of the current row from its first token on, each with its end in the row.
    let mut path: Vec<(usize, usize)> = Vec::new();
    for ((&len, &shared), branches) in lens.iter().zip(shared).zip(branches) {
        while path.last().is_some_and(|&(end, _)| end > shared) {
            path.pop();
        }
        let mut start = shared;
        for end in branches.into_iter().chain([len]) {
            let prefix = path.last().map(|&(_, segment)| segment);
            path.push((end, segments.len()));
            segments.push(Segment {
                len: to_i64(end - start),
                prefix,
            });
            start = end;
        }
    }
    Ok(Segments::new(segments)?)
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

    #[test]
    fn what_rows_share_is_laid_out_once() {
        let row = |ids: &[u32], first_trained: usize| {
            let ids: Vec<TokenId> = ids.iter().copied().map(TokenId).collect();
            let mask = (0..ids.len()).map(|index| index >= first_trained).collect();
            TrainingRow::sft_masked(ids, mask).unwrap()
        };
        let rows = [
            row(&[1, 2, 3, 4, 5], 4),
            row(&[1, 2, 3, 9, 7], 4),
            row(&[1, 6, 8], 2),
            row(&[5, 5], 1),
        ];
        let weighed: Vec<_> = rows.iter().map(|row| (row, 1.0)).collect();
        let shared = [0, 3, 1, 0];
        let batch = MicroBatch::assemble_shared(&weighed, &shared, Device::Cpu).unwrap();
        assert_eq!(integers(&batch.ids), [1, 2, 3, 4, 5, 9, 7, 6, 8, 5, 5]);
        let segment = |len, prefix| Segment { len, prefix };
        assert_eq!(
            batch.segments.as_slice(),
            [
                segment(1, None),
                segment(2, Some(0)),
                segment(2, Some(1)),
                segment(2, Some(1)),
                segment(2, Some(0)),
                segment(2, None)
            ]
        );
        assert_eq!(integers(&batch.positions), [3, 5, 7, 9]);
        assert_eq!(integers(&batch.targets), [5, 7, 8, 5]);
        assert_eq!(integers(&batch.rows), [0, 1, 2, 3]);
        assert_eq!((batch.num_tokens(), batch.num_row_tokens()), (11, 15));
        // More than the row may share, and what the row before it does not have.
        for wrong in [[0, 4, 1, 0], [0, 3, 1, 1]] {
            assert!(MicroBatch::assemble_shared(&weighed, &wrong, Device::Cpu).is_err());
        }
    }
}
