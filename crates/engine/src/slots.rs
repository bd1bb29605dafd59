//! Which cache slots are free. The lowest free slot is handed out first, so that runs repeat exactly.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

#[derive(Debug)]
pub(crate) struct SlotPool {
    free: BinaryHeap<Reverse<i64>>,
}

impl SlotPool {
    pub(crate) fn new(num_slots: i64) -> Self {
        Self {
            free: (0..num_slots).map(Reverse).collect(),
        }
    }

    pub(crate) fn take(&mut self) -> Option<i64> {
        self.free.pop().map(|Reverse(slot)| slot)
    }

    pub(crate) fn give_back(&mut self, slot: i64) {
        debug_assert!(
            self.free.iter().all(|&Reverse(other)| other != slot),
            "slot {slot} freed twice"
        );
        self.free.push(Reverse(slot));
    }

    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::SlotPool;

    #[test]
    fn slots_are_unique_lowest_first_and_reusable() {
        let mut pool = SlotPool::new(3);
        assert_eq!(
            [pool.take(), pool.take(), pool.take(), pool.take()],
            [Some(0), Some(1), Some(2), None]
        );
        pool.give_back(2);
        pool.give_back(0);
        assert_eq!(pool.num_free(), 2);
        assert_eq!([pool.take(), pool.take()], [Some(0), Some(2)]);
    }
}
