//! Training rows cut into batches, and batches split over ranks.

use crate::row::TrainingRow;
use crate::seeds::DataOrder;

/// Rows of one step.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Rows of the batch.
    pub rows: Vec<TrainingRow>,
    /// Their indices among all rows.
    indices: Vec<usize>,
    /// Epoch of its first row, counted from 0.
    pub epoch: u64,
}

impl Batch {
    /// Text that all ranks must agree on before they split the batch.
    pub fn identity(&self, step: u64) -> String {
        format!("step {step}: rows {:?}", self.indices)
    }
}

/// Cuts the endless sequence of rows into batches of at most `batch_tokens` tokens, at least one row each. A batch may
/// span two epochs.
#[derive(Debug)]
pub struct Batches<'a> {
    rows: &'a [TrainingRow],
    order: DataOrder,
    batch_tokens: usize,
    position: u64,
}

impl<'a> Batches<'a> {
    /// The batches after the first `num_done`; `None` without rows. Skipping walks through lengths only, so it costs microseconds
    /// a batch.
    pub fn new(
        seed: u64,
        rows: &'a [TrainingRow],
        batch_tokens: usize,
        num_done: u64,
    ) -> Option<Self> {
        let order = DataOrder::new(seed, rows.len())?;
        let mut batches = Self {
            rows,
            order,
            batch_tokens,
            position: 0,
        };
        for _ in 0..num_done {
            batches.next_indices();
        }
        Some(batches)
    }

    fn next_indices(&mut self) -> Vec<usize> {
        let mut indices = Vec::new();
        let mut num_tokens = 0;
        loop {
            let index = self.order.item(self.position);
            num_tokens += self.rows[index].len();
            if !indices.is_empty() && num_tokens > self.batch_tokens {
                return indices;
            }
            indices.push(index);
            self.position += 1;
        }
    }

    /// The next batch of the endless sequence.
    pub fn next_batch(&mut self) -> Batch {
        let epoch = self.order.epoch(self.position);
        let indices = self.next_indices();
        let rows = indices
            .iter()
            .map(|&index| self.rows[index].clone())
            .collect();
        Batch {
            rows,
            indices,
            epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TokenId;

    fn rows() -> Vec<TrainingRow> {
        (0..10_u32)
            .map(|index| {
                let response = vec![TokenId(index); 1 + index as usize % 4];
                TrainingRow::sft(&[TokenId(index)], &response).unwrap()
            })
            .collect()
    }

    #[test]
    fn batches_after_a_skip_are_those_of_the_straight_walk() {
        let rows = rows();
        let mut straight = Batches::new(5, &rows, 12, 0).unwrap();
        let mut walked = Vec::new();
        for _ in 0..20 {
            walked.push(straight.next_batch());
        }
        assert!(walked.last().unwrap().epoch >= 3);
        for num_done in 0..20 {
            let mut skipped = Batches::new(5, &rows, 12, num_done).unwrap();
            let (got, expected) = (
                skipped.next_batch(),
                &walked[usize::try_from(num_done).unwrap()],
            );
            assert_eq!(
                (got.rows, got.epoch),
                (expected.rows.clone(), expected.epoch)
            );
        }
    }

    #[test]
    fn batches_respect_the_budget_and_hold_at_least_one_row() {
        let rows = rows();
        let mut batches = Batches::new(5, &rows, 12, 0).unwrap();
        for _ in 0..20 {
            let batch = batches.next_batch();
            assert!(batch.rows.iter().map(TrainingRow::len).sum::<usize>() <= 12);
        }
        let mut tiny = Batches::new(5, &rows, 1, 0).unwrap();
        assert_eq!(tiny.next_batch().rows.len(), 1);
    }
}
