//! Which waiting agents begin to run in a step.

use std::collections::HashSet;

use asyncthink_data::TokenId;

use super::Scheduler;
use super::plan::Entry;
use super::queue::Place;
use crate::block_manager::{BlockId, ContentId};
use crate::sequence::{SequenceIndex, State};

/// Whole blocks that a running sequence computes now, by their content.
type InFlight = HashSet<(ContentId, Vec<TokenId>)>;

impl Scheduler {
    /// Puts an agent in the queue.
    pub(super) fn wait(&mut self, index: SequenceIndex) {
        self.sequence_mut(index).state = State::Waiting;
        self.queue.insert(index, &self.sequences[index]);
    }

    /// Takes an agent out of the queue.
    pub(super) fn leave_queue(&mut self, index: SequenceIndex) {
        self.queue.remove(index, &self.sequences[index]);
    }

    /// Admits waiting agents in the order of the queue, as long as there is a place, a token of the budget, and blocks.
    ///
    /// Who needs a block next that another computes now waits for it; who does not fit is not overtaken.
    pub(super) fn admit(&mut self, budget: &mut usize, copies: &mut Vec<[BlockId; 2]>) {
        if self.queue.is_empty() {
            return;
        }
        for at in 0..self.plan.entries().len() {
            let entry = self.plan.entries()[at];
            if entry.samples && entry.leader.is_none() {
                self.admit_same(entry.index);
            }
        }
        let mut in_flight = self.in_flight();
        let mut place: Option<Place> = None;
        while *budget > 0
            && self.running.len() < self.limits.max_running
            && let Some((next, index)) = self.queue.next(place)
        {
            place = Some(next);
            let is_admitted = if self.sequence(index).admitted.is_some() {
                self.go_on(index, copies)
            } else {
                match self.begin(index, &in_flight) {
                    Some(is_admitted) => is_admitted,
                    // Its next block is being computed.
                    None => continue,
                }
            };
            if !is_admitted {
                break;
            }
            self.note_in_flight(index, &mut in_flight);
            if self.plan_rows(index, budget) {
                self.admit_same(index);
            }
        }
    }

    /// Blocks that are computed by running agents.
    fn in_flight(&self) -> InFlight {
        let mut in_flight = InFlight::new();
        for &index in &self.running {
            self.note_in_flight(index, &mut in_flight);
        }
        in_flight
    }

    fn note_in_flight(&self, index: SequenceIndex, in_flight: &mut InFlight) {
        let next = self
            .sequence(index)
            .next_whole_block(self.limits.block_size);
        if let Some((parent, tokens)) = next {
            in_flight.insert((parent, tokens.to_vec()));
        }
    }

    /// Lets an agent run again that still has its blocks.
    fn go_on(&mut self, index: SequenceIndex, copies: &mut Vec<[BlockId; 2]>) -> bool {
        let block_size = self.limits.block_size;
        loop {
            let (sequence, blocks) = self.sequence_and_blocks(index);
            if sequence.claim(blocks, block_size, copies) {
                break;
            }
            if !self.preempt_idle(index) {
                return false;
            }
        }
        self.leave_queue(index);
        self.run(index);
        true
    }

    /// Gives an agent blocks for all its tokens: those that the cache holds, and new ones. `None` where another agent
    /// computes the next block now, `false` where there are too few free blocks.
    fn begin(&mut self, index: SequenceIndex, in_flight: &InFlight) -> Option<bool> {
        let block_size = self.limits.block_size;
        let (sequence, blocks) = self.sequence_and_blocks(index);
        let found = sequence.find_prefix(blocks, block_size);
        let start = found.len() * block_size;
        let end = start + block_size;
        if end <= sequence.num_shareable {
            let parent = found
                .last()
                .map_or(ContentId::ROOT, |&(_, content)| content);
            let next = (parent, sequence.tokens[start..end].to_vec());
            if in_flight.contains(&next) {
                return None;
            }
        }
        let num_needed = sequence.tokens.len().div_ceil(block_size) - found.len();
        loop {
            let is_cached = |&&(block, _): &&(BlockId, ContentId)| self.blocks.is_free(block);
            let num_cached = found.iter().filter(is_cached).count();
            // Running agents need blocks soon: whoever takes the last ones would lose them again.
            let num_wanted = num_needed + num_cached + self.running.len();
            if num_wanted <= self.blocks.num_free() {
                break;
            }
            if !self.preempt_idle(index) {
                return Some(false);
            }
        }
        let admission = self.next_admission;
        self.leave_queue(index);
        let (sequence, blocks) = self.sequence_and_blocks(index);
        for &(block, content) in &found {
            blocks.share(block);
            sequence.blocks.push(block);
            sequence.contents.push(content);
        }
        for _ in 0..num_needed {
            sequence.blocks.extend(blocks.allocate());
        }
        sequence.num_computed = start;
        sequence.admitted = Some(admission);
        let num_again = sequence.num_computed_before.min(start);
        let num_reused = (start - num_again) as u64;
        self.next_admission += 1;
        self.holding.insert(admission, index);
        self.stats.reused_tokens += num_reused;
        self.run(index);
        Some(true)
    }

    /// Takes the blocks of the agent that was admitted last of those that do not run and came later than `index`.
    fn preempt_idle(&mut self, index: SequenceIndex) -> bool {
        let arrival = self.sequence(index).arrival;
        let mut holders = self.holding.values().rev().copied();
        let youngest = holders.find(|&other| {
            let sequence = self.sequence(other);
            let is_idle = matches!(sequence.state, State::Paused | State::Ended);
            is_idle && sequence.arrival > arrival
        });
        if let Some(youngest) = youngest {
            self.preempt(youngest);
        }
        youngest.is_some()
    }

    /// Admits waiting agents that have the same tokens as one whose last token is computed in this step: they share all
    /// its blocks and sample from the same logits.
    fn admit_same(&mut self, leader: SequenceIndex) {
        let sequence = self.sequence(leader);
        if !sequence.is_fresh {
            return;
        }
        let mut same = self.queue.with_tokens(&sequence.tokens).to_vec();
        same.sort_by_key(|&index| self.sequence(index).arrival);
        for index in same {
            // Each will need a block of its own for what it samples.
            if self.running.len() >= self.limits.max_running
                || self.blocks.num_free() <= self.running.len()
            {
                break;
            }
            let admission = self.next_admission;
            self.next_admission += 1;
            self.leave_queue(index);
            let shared = self.sequence(leader).blocks.clone();
            let (sequence, blocks) = self.sequence_and_blocks(index);
            for &block in &shared {
                blocks.share(block);
            }
            sequence.blocks = shared;
            sequence.admitted = Some(admission);
            self.holding.insert(admission, index);
            self.run(index);
            self.plan.push(Entry {
                index,
                num_rows: 0,
                samples: true,
                leader: Some(leader),
            });
        }
    }

    /// Puts an agent among the running ones, which are in the order of admission.
    fn run(&mut self, index: SequenceIndex) {
        self.sequence_mut(index).state = State::Running;
        let admitted = |index: SequenceIndex| self.sequence(index).admitted;
        let place = self
            .running
            .partition_point(|&other| admitted(other) < admitted(index));
        self.running.insert(place, index);
    }
}
