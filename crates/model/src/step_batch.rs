//! The rows of one decoding step.

use crate::error::{Error, Result};

/// Rows of one step: sequence `s` brings rows `cu_rows[s]..cu_rows[s + 1]`, at the positions from `first_positions[s]` on.
///
/// A sequence may bring several rows (its prompt, or text injected by a Join): prefill and decoding share one batch without
/// padding. All rows of a step are written to the cache before any row attends, so that a sequence may attend to a block
/// that another sequence of the same step fills. Positions of a sequence lie in the blocks of its block table, `block_size`
/// in each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepBatch {
    /// Token ids `[rows]`.
    pub ids: Vec<i64>,
    /// Number of rows before each sequence `[sequences + 1]`.
    pub cu_rows: Vec<i32>,
    /// Position of each sequence's first row `[sequences]`.
    pub first_positions: Vec<i32>,
    /// Number of blocks before each sequence's block table `[sequences + 1]`.
    pub cu_blocks: Vec<i32>,
    /// Block tables end to end; each covers the positions up to the sequence's last row.
    pub blocks: Vec<i32>,
    /// Blocks `[from, to]` that are copied in all layers before any row is written. No block is written by one copy and
    /// named by another.
    pub block_copies: Vec<[i32; 2]>,
    /// Rows whose next token is wanted `[samples]`; sequences that share a whole prompt name the same row.
    pub sample_rows: Vec<i32>,
}

impl StepBatch {
    /// Drops all rows and keeps the memory.
    pub fn clear(&mut self) {
        let Self {
            ids,
            cu_rows,
            first_positions,
            cu_blocks,
            blocks,
            block_copies,
            sample_rows,
        } = self;
        ids.clear();
        for offsets in [cu_rows, cu_blocks] {
            offsets.clear();
            offsets.push(0);
        }
        for numbers in [first_positions, blocks, sample_rows] {
            numbers.clear();
        }
        block_copies.clear();
    }

    /// Adds the rows of a sequence: tokens from `first_position` on, and its block table.
    pub fn push_sequence(
        &mut self,
        ids: impl IntoIterator<Item = i64>,
        first_position: usize,
        blocks: impl IntoIterator<Item = i32>,
    ) {
        self.ids.extend(ids);
        self.blocks.extend(blocks);
        self.first_positions.push(to_i32(first_position));
        for (offsets, len) in [
            (&mut self.cu_rows, self.ids.len()),
            (&mut self.cu_blocks, self.blocks.len()),
        ] {
            if offsets.is_empty() {
                offsets.push(0);
            }
            offsets.push(to_i32(len));
        }
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.first_positions.len()
    }

    /// Number of positions that a rotary table must have: one more than the last of any row.
    pub(crate) fn num_positions(&self) -> usize {
        let ends = self.spans().map(|span| span.first_position + span.num_rows);
        ends.max()
            .map_or(0, |end| usize::try_from(end).unwrap_or(0))
    }

    /// Rows of each sequence with the position of the first.
    pub(crate) fn spans(&self) -> impl Iterator<Item = RowSpan> + '_ {
        let rows = self.cu_rows.windows(2);
        let spans = rows.zip(&self.first_positions);
        spans.map(|(rows, &first_position)| RowSpan {
            first_row: i64::from(rows[0]),
            num_rows: i64::from(rows[1]) - i64::from(rows[0]),
            first_position: i64::from(first_position),
        })
    }

    /// Block table of each sequence.
    pub(crate) fn block_tables(&self) -> impl Iterator<Item = &[i32]> {
        let offsets = self.cu_blocks.windows(2);
        offsets.map(|ends| &self.blocks[to_usize(ends[0])..to_usize(ends[1])])
    }

    /// Number of blocks that a cache must have for this step: one more than the largest that is named.
    pub fn min_num_blocks(&self) -> usize {
        let copies = self.block_copies.iter().flatten();
        let largest = self.blocks.iter().chain(copies).max();
        largest.map_or(0, |&block| to_usize(block) + 1)
    }

    /// Checks the parts against each other and against a cache of `num_blocks` blocks.
    ///
    /// # Errors
    /// When an offset, a block or a row is out of range.
    pub fn check(&self, num_blocks: usize, block_size: usize) -> Result<()> {
        let fails = |what: String| Err(Error::StepBatch(what));
        let sequences = self.num_sequences();
        for (name, offsets, total) in [
            ("cu_rows", &self.cu_rows, self.ids.len()),
            ("cu_blocks", &self.cu_blocks, self.blocks.len()),
        ] {
            let is_empty = sequences == 0 && offsets.is_empty();
            let fits = offsets.len() == sequences + 1
                && offsets.first() == Some(&0)
                && offsets.last() == Some(&to_i32(total))
                && offsets.windows(2).all(|ends| ends[0] <= ends[1]);
            if !is_empty && !fits {
                return fails(format!("`{name}` does not divide {total} entries"));
            }
        }
        let copies = self.block_copies.iter().flatten();
        let wrong = |block: &&i32| **block < 0 || to_usize(**block) >= num_blocks;
        if let Some(block) = self.blocks.iter().chain(copies).find(wrong) {
            return fails(format!("block {block} of a cache of {num_blocks}"));
        }
        for (index, (span, table)) in self.spans().zip(self.block_tables()).enumerate() {
            let end = span.first_position + span.num_rows;
            if span.first_position < 0 || end > to_i64(table.len() * block_size) {
                let blocks = table.len();
                return fails(format!(
                    "sequence {index} has {end} tokens and {blocks} blocks of {block_size}"
                ));
            }
        }
        let rows = to_i32(self.num_rows());
        let wrong = |row: &&i32| **row < 0 || **row >= rows;
        match self.sample_rows.iter().find(wrong) {
            Some(row) => fails(format!("row {row} of {rows} is to be sampled")),
            None => Ok(()),
        }
    }
}

/// Rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSpan {
    /// Index of the first row.
    pub first_row: i64,
    /// Number of rows.
    pub num_rows: i64,
    /// Position of the first row in its sequence.
    pub first_position: i64,
}

fn to_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn to_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn to_usize(index: i32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> StepBatch {
        let mut batch = StepBatch::default();
        batch.clear();
        batch.push_sequence([5, 6, 7], 2, [4, 0]);
        batch.push_sequence([8], 0, [3]);
        batch.sample_rows.extend([2, 2, 3]);
        batch
    }

    #[test]
    fn sequences_lie_end_to_end() {
        let batch = batch();
        batch.check(5, 4).unwrap();
        assert_eq!(
            (batch.cu_rows.as_slice(), batch.cu_blocks.as_slice()),
            (&[0, 3, 4][..], &[0, 2, 3][..])
        );
        assert_eq!(batch.min_num_blocks(), 5);
        let spans: Vec<_> = batch.spans().collect();
        assert_eq!(
            (
                spans[0].first_position,
                spans[1].first_row,
                spans[1].num_rows
            ),
            (2, 3, 1)
        );
        StepBatch::default().check(0, 16).unwrap();
    }

    #[test]
    fn wrong_batches_are_refused() {
        let refused = |message: &str, change: fn(&mut StepBatch)| {
            let mut batch = batch();
            change(&mut batch);
            let error = batch.check(5, 4).unwrap_err().to_string();
            assert!(error.ends_with(message), "{error}");
        };
        refused("block 5 of a cache of 5", |b| b.blocks[1] = 5);
        refused("block -1 of a cache of 5", |b| {
            b.block_copies.push([0, -1]);
        });
        refused("sequence 0 has 9 tokens and 2 blocks of 4", |b| {
            b.first_positions[0] = 6;
        });
        refused("row 4 of 4 is to be sampled", |b| b.sample_rows[0] = 4);
        refused("`cu_rows` does not divide 4 entries", |b| b.cu_rows[1] = 9);
        refused("`cu_blocks` does not divide 3 entries", |b| {
            b.cu_blocks.pop();
        });
    }
}
