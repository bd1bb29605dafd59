//! The state of one agent: its tokens, and the blocks that hold their keys and values.

use asyncthink_data::TokenId;

use crate::agent_id::AgentId;
use crate::block_manager::{BlockId, BlockManager, ContentId};
use crate::request::Request;
use crate::sampler::SamplingParams;

/// Index of a sequence among those that a scheduler holds.
pub(crate) type SequenceIndex = usize;

/// Where an agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In the queue, to run when there is room.
    Waiting,
    /// In every step.
    Running,
    /// Stopped by the caller.
    Paused,
    /// Stopped by itself: it sampled an end of sequence, or its context is full.
    Ended,
}

/// One decoding sequence with its block table.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) agent: AgentId,
    pub(crate) seed: u64,
    pub(crate) sampling: SamplingParams,
    pub(crate) expected_tokens: usize,
    /// Number in the order of arrival.
    pub(crate) arrival: u64,
    /// Number in the order of admission, while it holds blocks.
    pub(crate) admitted: Option<u64>,
    pub(crate) state: State,
    /// Tokens known: prompt, sampled and injected ones.
    pub(crate) tokens: Vec<TokenId>,
    /// Leading tokens whose keys and values the blocks hold.
    pub(crate) num_computed: usize,
    /// Leading tokens that were computed before a preemption.
    pub(crate) num_computed_before: usize,
    /// Leading tokens whose whole blocks are made known by their content: those that were given, and at a preemption all.
    pub(crate) num_shareable: usize,
    /// Position of a sampled token that was never computed.
    pub(crate) pending_sample: Option<usize>,
    /// Whether nothing was sampled since the agent was admitted.
    pub(crate) is_fresh: bool,
    pub(crate) blocks: Vec<BlockId>,
    /// Contents of the leading blocks that are known by theirs.
    pub(crate) contents: Vec<ContentId>,
}

impl Sequence {
    pub(crate) fn new(request: &Request, arrival: u64) -> Self {
        Self {
            agent: request.agent,
            seed: request.seed,
            sampling: request.sampling.clone(),
            expected_tokens: request.expected_tokens,
            arrival,
            admitted: None,
            state: State::Paused,
            tokens: request.prompt.clone(),
            num_computed: 0,
            num_computed_before: 0,
            num_shareable: request.prompt.len(),
            pending_sample: None,
            is_fresh: true,
            blocks: Vec::new(),
            contents: Vec::new(),
        }
    }

    pub(crate) fn num_pending(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    fn content_before(&self, block: usize) -> ContentId {
        block
            .checked_sub(1)
            .and_then(|last| self.contents.get(last))
            .copied()
            .unwrap_or(ContentId::ROOT)
    }

    /// The whole block of known tokens that is computed next, by its content.
    pub(crate) fn next_whole_block(&self, block_size: usize) -> Option<(ContentId, &[TokenId])> {
        let block = self.num_computed / block_size;
        let end = (block + 1) * block_size;
        let is_whole = end <= self.num_shareable && self.contents.len() == block;
        is_whole.then(|| {
            let tokens = &self.tokens[block * block_size..end];
            (self.content_before(block), tokens)
        })
    }

    /// Leading blocks that the cache holds. The last token is never among them: it is computed to be sampled after.
    pub(crate) fn find_prefix(
        &self,
        blocks: &mut BlockManager,
        block_size: usize,
    ) -> Vec<(BlockId, ContentId)> {
        let mut found: Vec<(BlockId, ContentId)> = Vec::new();
        for tokens in self.tokens[..self.tokens.len() - 1].chunks_exact(block_size) {
            let parent = found
                .last()
                .map_or(ContentId::ROOT, |&(_, content)| content);
            match blocks.find(parent, tokens) {
                Some(block) => found.push(block),
                None => break,
            }
        }
        found
    }

    /// Makes the block table cover all tokens, and the block that is written next the agent's own; `false` where there are
    /// too few free blocks, and nothing is changed.
    pub(crate) fn claim(
        &mut self,
        blocks: &mut BlockManager,
        block_size: usize,
        copies: &mut Vec<[BlockId; 2]>,
    ) -> bool {
        let num_needed = self.tokens.len().div_ceil(block_size);
        let next = self.num_computed / block_size;
        let foreign = self.blocks.get(next).copied();
        let foreign = foreign.filter(|&block| !blocks.is_writable(block));
        let num_new = num_needed.saturating_sub(self.blocks.len());
        if num_new + usize::from(foreign.is_some()) > blocks.num_free() {
            return false;
        }
        for _ in 0..num_new {
            let Some(block) = blocks.allocate() else {
                return false;
            };
            self.blocks.push(block);
        }
        if let Some(foreign) = foreign
            && let Some(own) = blocks.allocate()
        {
            if !self.num_computed.is_multiple_of(block_size) {
                copies.push([foreign, own]);
                blocks.keep_for_copy(foreign);
            }
            self.blocks[next] = own;
            self.contents.truncate(next);
            blocks.release(foreign);
        }
        true
    }

    /// Releases all blocks after the first `num_kept`, the last one first.
    pub(crate) fn release_after(&mut self, blocks: &mut BlockManager, num_kept: usize) {
        while self.blocks.len() > num_kept
            && let Some(block) = self.blocks.pop()
        {
            blocks.release(block);
        }
        self.contents.truncate(num_kept);
    }

    /// Makes computed whole blocks of shareable tokens known by their content.
    pub(crate) fn register(&mut self, blocks: &mut BlockManager, block_size: usize) {
        let num_whole = self.num_shareable.min(self.num_computed) / block_size;
        for index in self.contents.len()..num_whole {
            let tokens = &self.tokens[index * block_size..(index + 1) * block_size];
            let parent = self.content_before(index);
            let (block, content) = blocks.register(parent, tokens, self.blocks[index]);
            self.blocks[index] = block;
            self.contents.push(content);
        }
    }

    /// Cuts the tokens after the first `keep_tokens` and appends `ids`. What is computed of the rest is kept, but for the
    /// last token, which is computed to be sampled after.
    pub(crate) fn cut_and_append(
        &mut self,
        blocks: &mut BlockManager,
        block_size: usize,
        keep_tokens: usize,
        ids: &[TokenId],
    ) {
        self.pending_sample = self
            .pending_sample
            .filter(|&position| position < keep_tokens);
        self.tokens.truncate(keep_tokens);
        self.tokens.extend_from_slice(ids);
        self.num_computed = self
            .num_computed
            .min(keep_tokens)
            .min(self.tokens.len().saturating_sub(1));
        self.num_computed_before = self.num_computed_before.min(keep_tokens);
        self.num_shareable = if keep_tokens <= self.num_shareable {
            self.tokens.len()
        } else {
            self.num_shareable.min(self.tokens.len())
        };
        self.release_after(blocks, self.num_computed.div_ceil(block_size));
        self.contents.truncate(self.num_computed / block_size);
    }

    /// Makes all that is computed known by its content, so that it may be found again until it is overwritten.
    pub(crate) fn preempt_content(&mut self, blocks: &mut BlockManager, block_size: usize) {
        self.num_shareable = self.tokens.len();
        self.register(blocks, block_size);
    }

    /// Drops all blocks.
    pub(crate) fn drop_blocks(&mut self, blocks: &mut BlockManager) {
        self.release_after(blocks, 0);
        self.num_computed_before = self.num_computed_before.max(self.num_computed);
        self.num_computed = 0;
        self.is_fresh = true;
        self.admitted = None;
    }
}
