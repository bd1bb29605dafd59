#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers of tests are small"
)]

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;

impl BlockManager {
    /// Checks that every block is in one place and that references are those of `tables`.
    pub(crate) fn check<'t>(&self, tables: impl Iterator<Item = &'t [BlockId]>) {
        let mut refs = vec![0; self.blocks.len()];
        for &block in tables.flatten() {
            refs[usize::try_from(block).unwrap()] += 1;
        }
        let empty: BTreeSet<BlockId> = self.empty.iter().copied().collect();
        assert_eq!(empty.len(), self.empty.len(), "a block is free twice");
        let cached: BTreeSet<BlockId> = self.cached.values().copied().collect();
        for (index, (block, refs)) in self.blocks.iter().zip(refs).enumerate() {
            let id = BlockId::try_from(index).unwrap();
            assert_eq!(block.refs, refs, "references of block {id}");
            let is_free = refs == 0 && !block.is_copied;
            let has_content = block.content.is_some();
            assert_eq!(empty.contains(&id), is_free && !has_content, "block {id}");
            assert_eq!(cached.contains(&id), is_free && has_content, "block {id}");
            if let Some((_, key)) = &block.content {
                assert_eq!(self.contents.get(key), Some(&id));
            }
        }
        let num_known = self.blocks.iter().filter(|block| block.content.is_some());
        assert_eq!(self.contents.len(), num_known.count());
    }
}

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().map(|&id| TokenId(id)).collect()
}

#[test]
fn blocks_without_content_come_first_and_the_oldest_content_last() {
    let mut manager = BlockManager::new(4);
    let take = |manager: &mut BlockManager| manager.allocate().unwrap();
    let (a, b, c) = (take(&mut manager), take(&mut manager), take(&mut manager));
    let (_, first) = manager.register(ContentId::ROOT, &tokens(&[1]), a);
    manager.register(first, &tokens(&[1]), b);
    // The tail of a sequence is released first, so that it is the first to go.
    manager.release(b);
    manager.release(a);
    manager.release(c);
    assert_eq!((manager.num_free(), manager.num_used()), (4, 0));
    assert_eq!(
        manager.find(ContentId::ROOT, &tokens(&[1])),
        Some((a, first))
    );
    assert_eq!(manager.find(ContentId::ROOT, &tokens(&[2])), None);
    let taken: Vec<BlockId> = (0..4).map(|_| take(&mut manager)).collect();
    assert_eq!(taken, [c, 3, b, a]);
    assert_eq!(manager.allocate(), None);
    assert_eq!(manager.find(ContentId::ROOT, &tokens(&[1])), None);
    manager.check([taken.as_slice()].into_iter());
}

#[test]
fn a_content_that_is_known_takes_the_place_of_a_second_one() {
    let mut manager = BlockManager::new(3);
    let (a, b) = (manager.allocate().unwrap(), manager.allocate().unwrap());
    let known = manager.register(ContentId::ROOT, &tokens(&[1, 2]), a);
    assert_eq!(
        manager.register(ContentId::ROOT, &tokens(&[1, 2]), b),
        known
    );
    assert_eq!(
        manager.register(ContentId::ROOT, &tokens(&[1, 2]), a),
        known
    );
    manager.check([&[a, a][..]].into_iter());
    assert!(!manager.is_writable(a));
    assert_eq!(manager.allocate(), Some(b));
}

#[test]
fn a_source_of_copies_is_not_handed_out_in_its_step() {
    let mut manager = BlockManager::new(1);
    let a = manager.allocate().unwrap();
    manager.keep_for_copy(a);
    manager.keep_for_copy(a);
    manager.release(a);
    assert_eq!(manager.allocate(), None);
    manager.end_step();
    manager.check(std::iter::empty());
    assert_eq!(manager.allocate(), Some(a));
}

#[test]
fn random_operations_leak_nothing_and_hand_out_no_block_twice() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut below = |bound: usize| (rng.next_u64() % bound as u64) as usize;
    let num_blocks = 40;
    let mut manager = BlockManager::new(num_blocks);
    // Block tables with the contents of their registered blocks.
    let mut tables: Vec<(Vec<BlockId>, Vec<ContentId>)> = vec![Default::default(); 12];
    for operation in 0..100_000 {
        let index = below(tables.len());
        let (table, contents) = &mut tables[index];
        match below(8) {
            0..3 => {
                let free_before = manager.num_free();
                match manager.allocate() {
                    Some(block) => {
                        assert_eq!(manager.num_free(), free_before - 1);
                        table.push(block);
                        let others = tables.iter().enumerate();
                        let mut others = others.filter(|&(other, _)| other != index);
                        assert!(
                            others.all(|(_, (table, _))| !table.contains(&block)),
                            "block {block} is handed out twice"
                        );
                    }
                    None => assert_eq!(free_before, 0),
                }
            }
            3 if contents.len() < table.len() => {
                // Few different tokens, so that contents meet.
                let parent = contents.last().copied().unwrap_or(ContentId::ROOT);
                let token = TokenId(below(3) as u32);
                let at = contents.len();
                let (block, content) = manager.register(parent, &[token], table[at]);
                table[at] = block;
                contents.push(content);
            }
            4 if table.is_empty() => {
                // Known content is shared.
                let mut parent = ContentId::ROOT;
                while let Some((block, content)) = manager.find(parent, &[TokenId(below(3) as u32)])
                {
                    manager.share(block);
                    table.push(block);
                    contents.push(content);
                    parent = content;
                }
            }
            5 => {
                if let Some(block) = table.pop() {
                    manager.release(block);
                    contents.truncate(table.len());
                }
            }
            6 if !table.is_empty() => {
                // The last block is replaced by a copy.
                let last = table.len() - 1;
                if let Some(copy) = manager.allocate() {
                    manager.keep_for_copy(table[last]);
                    manager.release(table[last]);
                    table[last] = copy;
                    contents.truncate(last);
                }
                if below(2) == 0 {
                    manager.end_step();
                }
            }
            7 => {
                while let Some(block) = table.pop() {
                    manager.release(block);
                }
                contents.clear();
            }
            _ => {}
        }
        if operation % 50 == 0 {
            manager.check(tables.iter().map(|(table, _)| table.as_slice()));
        }
    }
    for (table, _) in &mut tables {
        while let Some(block) = table.pop() {
            manager.release(block);
        }
    }
    manager.end_step();
    manager.check(std::iter::empty());
    assert_eq!(manager.num_free(), num_blocks);
}
