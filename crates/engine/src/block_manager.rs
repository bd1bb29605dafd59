//! Blocks of the KV cache: reference counts, and whole blocks found again by what they hold.
//!
//! The content of a block is known by the content of the block before it and by its own tokens. Both are compared
//! exactly: a content is never taken for another, whatever their hashes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use asyncthink_data::TokenId;

/// Index of a block in the cache.
pub(crate) type BlockId = i32;

/// Content of a whole block and of all blocks before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContentId(u64);

impl ContentId {
    /// Content before the first block.
    pub(crate) const ROOT: Self = Self(0);
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ContentKey {
    parent: ContentId,
    tokens: Vec<TokenId>,
}

#[derive(Debug, Default)]
struct Block {
    /// Sequences whose block tables name it.
    refs: u32,
    content: Option<(ContentId, Arc<ContentKey>)>,
    /// When it was last released, while it is cached.
    released: u64,
    /// A copy of this step reads it: it is not handed out before the step is over.
    is_copied: bool,
}

/// Hands out blocks and takes them back.
///
/// Free blocks are handed out in this order: blocks without content, which memory exists for; blocks that were never used;
/// blocks whose content might be needed again, the least recently used first. So memory stays at what was needed at once.
#[derive(Debug)]
pub(crate) struct BlockManager {
    num_blocks: usize,
    /// Blocks that were ever used.
    blocks: Vec<Block>,
    /// Free blocks without content.
    empty: Vec<BlockId>,
    /// Free blocks with content by the time of their release.
    cached: BTreeMap<u64, BlockId>,
    contents: HashMap<Arc<ContentKey>, BlockId>,
    copied: Vec<BlockId>,
    next_content: u64,
    next_release: u64,
    /// A key to look up with.
    wanted: ContentKey,
}

impl BlockManager {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self {
            num_blocks,
            blocks: Vec::new(),
            empty: Vec::new(),
            cached: BTreeMap::new(),
            contents: HashMap::new(),
            copied: Vec::new(),
            next_content: 1,
            next_release: 1,
            wanted: ContentKey {
                parent: ContentId::ROOT,
                tokens: Vec::new(),
            },
        }
    }

    /// Blocks that can be handed out.
    pub(crate) fn num_free(&self) -> usize {
        self.num_blocks - self.blocks.len() + self.empty.len() + self.cached.len()
    }

    /// Blocks that sequences hold.
    pub(crate) fn num_used(&self) -> usize {
        self.num_blocks - self.num_free()
    }

    /// A block with one reference; `None` where all are in use.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = if let Some(block) = self.empty.pop() {
            block
        } else if self.blocks.len() < self.num_blocks {
            self.blocks.push(Block::default());
            BlockId::try_from(self.blocks.len() - 1).ok()?
        } else {
            let (_, block) = self.cached.pop_first()?;
            if let Some((_, key)) = self.block_mut(block).content.take() {
                self.contents.remove(&key);
            }
            block
        };
        self.block_mut(block).refs = 1;
        Some(block)
    }

    /// Adds a reference to a block that is in use or cached.
    pub(crate) fn share(&mut self, block: BlockId) {
        let place = self.block_mut(block);
        place.refs += 1;
        if place.refs == 1 {
            let released = place.released;
            self.cached.remove(&released);
        }
    }

    /// Takes a reference back.
    pub(crate) fn release(&mut self, block: BlockId) {
        let place = self.block_mut(block);
        debug_assert!(place.refs > 0, "block {block} is released twice");
        place.refs = place.refs.saturating_sub(1);
        if place.refs == 0 && !place.is_copied {
            self.make_free(block);
        }
    }

    fn make_free(&mut self, block: BlockId) {
        let released = self.next_release;
        let place = self.block_mut(block);
        if place.content.is_some() {
            place.released = released;
            self.cached.insert(released, block);
            self.next_release += 1;
        } else {
            self.empty.push(block);
        }
    }

    /// Whether a sequence that holds the block may write into it: nobody else holds it, and it is not known by its content.
    pub(crate) fn is_writable(&self, block: BlockId) -> bool {
        let place = self.block(block);
        place.refs == 1 && place.content.is_none()
    }

    /// Whether no sequence holds the block.
    pub(crate) fn is_free(&self, block: BlockId) -> bool {
        self.block(block).refs == 0
    }

    /// Keeps a block that is the source of a copy from being handed out before [`Self::end_step`].
    pub(crate) fn keep_for_copy(&mut self, block: BlockId) {
        self.block_mut(block).is_copied = true;
        self.copied.push(block);
    }

    /// Copies have been made.
    pub(crate) fn end_step(&mut self) {
        while let Some(block) = self.copied.pop() {
            let place = self.block_mut(block);
            // A block may be the source of several copies.
            let is_free = std::mem::take(&mut place.is_copied) && place.refs == 0;
            if is_free {
                self.make_free(block);
            }
        }
    }

    /// The block that holds `tokens` after the content `parent`, with its own content.
    pub(crate) fn find(
        &mut self,
        parent: ContentId,
        tokens: &[TokenId],
    ) -> Option<(BlockId, ContentId)> {
        self.wanted.parent = parent;
        self.wanted.tokens.clear();
        self.wanted.tokens.extend_from_slice(tokens);
        let block = *self.contents.get(&self.wanted)?;
        let (content, _) = self.block(block).content.as_ref()?;
        Some((block, *content))
    }

    /// Makes the content of a block known, which is in use and holds `tokens` after `parent`. If another block holds the
    /// same, it takes the place of this one. Returns the block to use and its content.
    pub(crate) fn register(
        &mut self,
        parent: ContentId,
        tokens: &[TokenId],
        block: BlockId,
    ) -> (BlockId, ContentId) {
        if let Some((known, content)) = self.find(parent, tokens) {
            if known != block {
                self.share(known);
                self.release(block);
            }
            return (known, content);
        }
        let content = ContentId(self.next_content);
        self.next_content += 1;
        let key = Arc::new(ContentKey {
            parent,
            tokens: tokens.to_vec(),
        });
        self.contents.insert(Arc::clone(&key), block);
        self.block_mut(block).content = Some((content, key));
        (block, content)
    }

    fn block(&self, block: BlockId) -> &Block {
        &self.blocks[usize::try_from(block).unwrap_or(usize::MAX)]
    }

    fn block_mut(&mut self, block: BlockId) -> &mut Block {
        &mut self.blocks[usize::try_from(block).unwrap_or(usize::MAX)]
    }
}

#[cfg(test)]
mod tests;
