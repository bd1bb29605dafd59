//! Rows of a step: how many a sequence gets, how they are written down as a batch, and what they leave behind.

use asyncthink_model::StepBatch;
use asyncthink_torch::SamplingBatch;

use super::Scheduler;
use super::plan::Entry;
use crate::block_manager::BlockManager;
use crate::sequence::{Sequence, SequenceIndex};

impl Scheduler {
    /// Rows of running agents: those that decode first.
    pub(super) fn plan_running(&mut self, budget: &mut usize) {
        for decodes in [true, false] {
            for at in 0..self.running.len() {
                let index = self.running[at];
                if (self.sequence(index).num_pending() == 1) == decodes {
                    self.plan_rows(index, budget);
                }
            }
        }
    }

    /// As many rows as the budget leaves to a sequence, up to the end of a block where it is not the last. Returns
    /// whether it samples.
    pub(super) fn plan_rows(&mut self, index: SequenceIndex, budget: &mut usize) -> bool {
        let block_size = self.limits.block_size;
        let sequence = self.sequence(index);
        let num_pending = sequence.num_pending();
        let mut num_rows = num_pending.min(*budget);
        if num_rows == 0 {
            return false;
        }
        if num_rows < num_pending {
            let end = (sequence.num_computed + num_rows) / block_size * block_size;
            if end > sequence.num_computed {
                num_rows = end - sequence.num_computed;
            }
            // Nobody else begins in what is left, so that prompts are computed one after the other.
            *budget = 0;
        } else {
            *budget -= num_rows;
        }
        let samples = num_rows == num_pending;
        self.plan.push(Entry {
            index,
            num_rows,
            samples,
            leader: None,
        });
        samples
    }

    /// Writes the plan down for a runner.
    pub(super) fn write_batch(&self, batch: &mut StepBatch, sampling: &mut SamplingBatch) {
        let block_size = self.limits.block_size;
        let mut last_rows = Vec::new();
        for entry in self.plan.entries() {
            let sequence = self.sequence(entry.index);
            if entry.num_rows > 0 {
                let start = sequence.num_computed;
                let end = start + entry.num_rows;
                let ids = &sequence.tokens[start..end];
                let blocks = &sequence.blocks[..end.div_ceil(block_size)];
                batch.push_sequence(
                    ids.iter().map(|id| i64::from(id.0)),
                    start,
                    blocks.iter().copied(),
                );
            }
            if !entry.samples {
                continue;
            }
            let row = match entry.leader {
                None => batch.num_rows() - 1,
                Some(leader) => {
                    let row = last_rows.iter().rev().find(|(index, _)| *index == leader);
                    row.map_or(0, |&(_, row)| row)
                }
            };
            if sequence.is_fresh && entry.leader.is_none() {
                last_rows.push((entry.index, row));
            }
            batch
                .sample_rows
                .push(i32::try_from(row).unwrap_or(i32::MAX));
            let banned = sequence.sampling.banned_ids().iter();
            sampling.push(
                sequence.sampling.row(sequence.seed, sequence.tokens.len()),
                banned.map(|id| i64::from(id.0)),
            );
        }
    }

    /// Notes that the rows of an entry are computed, and makes whole blocks known.
    pub(super) fn book_computed(&mut self, entry: &Entry) {
        let block_size = self.limits.block_size;
        let (sequence, blocks) = self.sequence_and_blocks(entry.index);
        let start = sequence.num_computed;
        if entry.leader.is_some() {
            sequence.num_computed = sequence.tokens.len();
            let num_shared = (sequence.num_computed - start) as u64;
            sequence.register(blocks, block_size);
            self.stats.reused_tokens += num_shared;
            return;
        }
        let end = start + entry.num_rows;
        sequence.num_computed = end;
        let num_again = sequence.num_computed_before.clamp(start, end) - start;
        let sampled = sequence.pending_sample.filter(|&position| position < end);
        if sampled.is_some() {
            sequence.pending_sample = None;
        }
        sequence.register(blocks, block_size);
        let num_first = entry.num_rows - num_again - usize::from(sampled.is_some());
        self.stats.recomputed_tokens += num_again as u64;
        self.stats.prefilled_tokens += num_first as u64;
    }

    pub(super) fn sequence(&self, index: SequenceIndex) -> &Sequence {
        &self.sequences[index]
    }

    pub(super) fn sequence_mut(&mut self, index: SequenceIndex) -> &mut Sequence {
        &mut self.sequences[index]
    }

    pub(super) fn sequence_and_blocks(
        &mut self,
        index: SequenceIndex,
    ) -> (&mut Sequence, &mut BlockManager) {
        (&mut self.sequences[index], &mut self.blocks)
    }
}
