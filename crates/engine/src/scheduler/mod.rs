//! Which tokens of which agents one step computes, and where in the cache.
//!
//! A step has a budget of tokens. Agents that decode come first, a row each; what is left goes to prompts and injected text,
//! in parts where they are long. Agents that wait are admitted while there is budget, a place and blocks. Where running
//! agents need more blocks than there are, the one that was admitted last loses its own; its tokens stay, and are computed
//! again later. Samples are a function of seed and position, so that they come out the same.

mod admission;
mod plan;
mod queue;
mod rows;

use std::collections::{BTreeMap, HashMap};

use asyncthink_data::TokenId;
use asyncthink_model::StepBatch;
use asyncthink_torch::{SampledRow, SamplingBatch};

use crate::agent_id::AgentId;
use crate::block_manager::{BlockId, BlockManager};
use crate::error::{Error, Result};
use crate::request::{Request, Sampled};
use crate::sequence::{Sequence, SequenceIndex, State};
use crate::stats::EngineStats;
use plan::Plan;
use queue::Queue;

/// Limits of a scheduler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most agents in one step.
    pub(crate) max_running: usize,
    pub(crate) max_batch_tokens: usize,
    pub(crate) block_size: usize,
    pub(crate) num_blocks: usize,
    /// Most tokens of one sequence.
    pub(crate) max_sequence_tokens: usize,
    /// For messages.
    pub(crate) block_bytes: u64,
    /// For messages.
    pub(crate) budget_bytes: u64,
}

impl Limits {
    /// Fails where a sequence does not fit into an empty cache.
    pub(crate) fn check_fits(&self, num_tokens: usize) -> Result<()> {
        let needed_blocks = num_tokens.div_ceil(self.block_size);
        if needed_blocks <= self.num_blocks {
            return Ok(());
        }
        Err(Error::CacheBudget {
            num_tokens,
            needed_blocks,
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            block_bytes: self.block_bytes,
            budget_bytes: self.budget_bytes,
        })
    }
}

/// Sequences, blocks, and the queue of those that wait.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    blocks: BlockManager,
    sequences: Vec<Sequence>,
    /// Indices of sequences that were removed.
    vacant: Vec<SequenceIndex>,
    by_agent: HashMap<AgentId, SequenceIndex>,
    /// In the order of admission.
    running: Vec<SequenceIndex>,
    /// Sequences that hold blocks by their number of admission.
    holding: BTreeMap<u64, SequenceIndex>,
    queue: Queue,
    next_arrival: u64,
    next_admission: u64,
    plan: Plan,
    stats: EngineStats,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            blocks: BlockManager::new(limits.num_blocks),
            limits,
            sequences: Vec::new(),
            vacant: Vec::new(),
            by_agent: HashMap::new(),
            running: Vec::new(),
            holding: BTreeMap::new(),
            queue: Queue::default(),
            next_arrival: 0,
            next_admission: 0,
            plan: Plan::default(),
            stats: EngineStats::default(),
        }
    }

    pub(crate) fn stats(&self) -> EngineStats {
        self.stats
    }

    pub(crate) fn num_agents(&self) -> usize {
        self.by_agent.len()
    }

    /// Whether an agent runs or waits to.
    pub(crate) fn has_work(&self) -> bool {
        !self.running.is_empty() || !self.queue.is_empty()
    }

    /// Forgets all agents and all content.
    pub(crate) fn clear(&mut self) {
        let stats = self.stats;
        *self = Self::new(self.limits);
        self.stats = stats;
    }

    pub(crate) fn add(&mut self, request: &Request) -> Result<()> {
        let agent = request.agent;
        if request.prompt.is_empty() {
            return Err(Error::EmptyPrompt(agent));
        }
        if self.by_agent.contains_key(&agent) {
            return Err(Error::DuplicateAgent(agent));
        }
        self.check_length(agent, request.prompt.len())?;
        let sequence = Sequence::new(request, self.next_arrival);
        self.next_arrival += 1;
        let index = if let Some(index) = self.vacant.pop() {
            self.sequences[index] = sequence;
            index
        } else {
            self.sequences.push(sequence);
            self.sequences.len() - 1
        };
        self.by_agent.insert(agent, index);
        self.wait(index);
        Ok(())
    }

    pub(crate) fn extend(
        &mut self,
        agent: AgentId,
        keep_tokens: usize,
        ids: &[TokenId],
    ) -> Result<()> {
        let index = self.find(agent)?;
        let num_tokens = self.sequence(index).tokens.len();
        if keep_tokens > num_tokens {
            return Err(Error::KeepTokens {
                agent,
                keep_tokens,
                num_tokens,
            });
        }
        if keep_tokens + ids.len() == 0 {
            return Err(Error::EmptyPrompt(agent));
        }
        self.check_length(agent, keep_tokens + ids.len())?;
        if self.sequence(index).state == State::Waiting {
            self.leave_queue(index);
        }
        let block_size = self.limits.block_size;
        let (sequence, blocks) = self.sequence_and_blocks(index);
        sequence.cut_and_append(blocks, block_size, keep_tokens, ids);
        if sequence.state != State::Running {
            self.wait(index);
        }
        Ok(())
    }

    pub(crate) fn pause(&mut self, agent: AgentId) -> Result<()> {
        let index = self.find(agent)?;
        // One that has ended stays so: it is not to be resumed.
        if self.sequence(index).state != State::Ended {
            self.stop(index, State::Paused);
        }
        Ok(())
    }

    pub(crate) fn resume(&mut self, agent: AgentId) -> Result<()> {
        let index = self.find(agent)?;
        if self.sequence(index).state == State::Paused {
            self.wait(index);
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, agent: AgentId) -> Result<()> {
        let index = self.find(agent)?;
        self.stop(index, State::Paused);
        self.drop_blocks(index);
        self.by_agent.remove(&agent);
        self.sequence_mut(index).tokens = Vec::new();
        self.vacant.push(index);
        Ok(())
    }

    pub(crate) fn num_tokens(&self, agent: AgentId) -> Result<usize> {
        Ok(self.sequence(self.find(agent)?).tokens.len())
    }

    /// Chooses what the next step computes; without rows where nobody runs or waits.
    pub(crate) fn schedule(
        &mut self,
        batch: &mut StepBatch,
        sampling: &mut SamplingBatch,
    ) -> Result<()> {
        batch.clear();
        sampling.clear();
        self.plan.clear();
        self.claim_blocks(&mut batch.block_copies)?;
        let mut budget = self.limits.max_batch_tokens;
        self.plan_running(&mut budget);
        self.admit(&mut budget, &mut batch.block_copies);
        // Agents that do not run may hold the blocks that those who wait need.
        while self.plan.is_empty()
            && !self.queue.is_empty()
            && let Some((_, &youngest)) = self.holding.last_key_value()
        {
            self.preempt(youngest);
            self.admit(&mut budget, &mut batch.block_copies);
        }
        self.stats.block_copies += batch.block_copies.len() as u64;
        self.stats.peak_blocks = self.stats.peak_blocks.max(self.blocks.num_used() as u64);
        self.write_batch(batch, sampling);
        Ok(())
    }

    /// Takes in what the step that was scheduled last has sampled.
    pub(crate) fn commit(
        &mut self,
        sampled: &[SampledRow],
        output: &mut Vec<Sampled>,
    ) -> Result<()> {
        self.blocks.end_step();
        let samples = self.plan.entries().iter().filter(|entry| entry.samples);
        for (entry, row) in samples.zip(sampled) {
            if !row.logprob.is_finite() {
                let agent = self.sequence(entry.index).agent;
                self.fail_step();
                return Err(Error::NonFinite(agent));
            }
        }
        let plan = std::mem::take(&mut self.plan);
        let mut sampled = sampled.iter();
        let mut any_ended = false;
        for entry in plan.entries() {
            self.book_computed(entry);
            if entry.samples
                && let Some(row) = sampled.next()
            {
                output.push(self.push_sampled(entry.index, row));
                any_ended |= self.sequence(entry.index).state == State::Ended;
            }
        }
        if any_ended {
            let sequences = &self.sequences;
            let runs = |index: &SequenceIndex| sequences[*index].state == State::Running;
            self.running.retain(runs);
        }
        self.stats.num_steps += 1;
        self.plan = plan;
        Ok(())
    }

    /// Gives up the step that was scheduled last: what blocks hold is not known, so that all agents drop theirs.
    pub(crate) fn fail_step(&mut self) {
        self.blocks.end_step();
        self.plan.clear();
        while let Some((_, &index)) = self.holding.last_key_value() {
            self.requeue_without_blocks(index);
        }
    }

    fn push_sampled(&mut self, index: SequenceIndex, row: &SampledRow) -> Sampled {
        let max_tokens = self.limits.max_sequence_tokens;
        let token = TokenId(u32::try_from(row.token).unwrap_or(u32::MAX));
        let sequence = self.sequence_mut(index);
        sequence.pending_sample = Some(sequence.tokens.len());
        sequence.tokens.push(token);
        sequence.is_fresh = false;
        let ends = sequence.sampling.eos_ids().contains(&token);
        if ends || sequence.tokens.len() >= max_tokens {
            sequence.state = State::Ended;
        }
        let agent = sequence.agent;
        self.stats.sampled_tokens += 1;
        Sampled {
            agent,
            token,
            logprob: row.logprob,
            raw_logprob: row.raw_logprob,
        }
    }

    /// Makes sure that every running agent has the blocks that its tokens need. Who was admitted last gives way.
    fn claim_blocks(&mut self, copies: &mut Vec<[BlockId; 2]>) -> Result<()> {
        let block_size = self.limits.block_size;
        let mut at = 0;
        while let Some(&index) = self.running.get(at) {
            let (sequence, blocks) = self.sequence_and_blocks(index);
            if sequence.claim(blocks, block_size, copies) {
                at += 1;
                continue;
            }
            let num_tokens = sequence.tokens.len();
            self.limits.check_fits(num_tokens)?;
            if let Some((_, &youngest)) = self.holding.last_key_value() {
                // It is this one or one that comes later.
                self.preempt(youngest);
            }
        }
        Ok(())
    }

    /// Takes the blocks of an agent; if it ran, it waits to be computed again.
    fn preempt(&mut self, index: SequenceIndex) {
        let block_size = self.limits.block_size;
        let (sequence, blocks) = self.sequence_and_blocks(index);
        sequence.preempt_content(blocks, block_size);
        self.requeue_without_blocks(index);
        self.stats.num_preemptions += 1;
    }

    fn requeue_without_blocks(&mut self, index: SequenceIndex) {
        let state = self.sequence(index).state;
        self.stop(index, state);
        self.drop_blocks(index);
        if matches!(state, State::Running | State::Waiting) {
            self.wait(index);
        }
    }

    fn drop_blocks(&mut self, index: SequenceIndex) {
        let (sequence, blocks) = self.sequence_and_blocks(index);
        let admitted = sequence.admitted;
        sequence.drop_blocks(blocks);
        if let Some(admitted) = admitted {
            self.holding.remove(&admitted);
        }
    }

    /// Takes an agent out of the running ones or out of the queue.
    fn stop(&mut self, index: SequenceIndex, state: State) {
        match self.sequence(index).state {
            State::Running => self.running.retain(|&other| other != index),
            State::Waiting => self.leave_queue(index),
            State::Paused | State::Ended => {}
        }
        self.sequence_mut(index).state = state;
    }

    fn check_length(&self, agent: AgentId, num_tokens: usize) -> Result<()> {
        let max_tokens = self.limits.max_sequence_tokens;
        if num_tokens > max_tokens {
            return Err(Error::TooLong {
                agent,
                num_tokens,
                max_tokens,
            });
        }
        self.limits.check_fits(num_tokens)
    }

    fn find(&self, agent: AgentId) -> Result<SequenceIndex> {
        let index = self.by_agent.get(&agent).copied();
        index.ok_or(Error::UnknownAgent(agent))
    }
}

#[cfg(test)]
mod tests;
