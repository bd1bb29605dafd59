use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// The number in a Fork or Join tag; the organizer chooses it and may reuse it after the Join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubQueryId(pub u32);

impl fmt::Display for SubQueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A worker's position in the order of the episode's Forks, from 0. Unlike a [`SubQueryId`] it is
/// never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerIndex(pub usize);

impl fmt::Display for WorkerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The agent pool's capacity `c`: one organizer and at most `c - 1` workers at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Capacity(NonZeroU32);

impl Capacity {
    /// The capacity of `agents` agents; `None` for 0, because the organizer needs a place.
    pub fn new(agents: u32) -> Option<Self> {
        NonZeroU32::new(agents).map(Self)
    }

    /// Agents in the pool, the organizer included.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Workers that may be active at one time, `c - 1`.
    pub fn max_workers(self) -> u32 {
        self.0.get() - 1
    }
}

impl TryFrom<u32> for Capacity {
    type Error = &'static str;

    fn try_from(agents: u32) -> Result<Self, Self::Error> {
        Self::new(agents).ok_or("the capacity must be at least 1: the organizer needs a place")
    }
}

impl From<Capacity> for u32 {
    fn from(capacity: Capacity) -> Self {
        capacity.get()
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_at_least_one_in_rust_and_in_json() {
        assert_eq!(Capacity::new(0), None);
        assert_eq!(Capacity::new(1).map(Capacity::max_workers), Some(0));
        let capacity: Capacity = serde_json::from_str("4").expect("4 is a capacity");
        assert_eq!((capacity.get(), capacity.max_workers()), (4, 3));
        assert!(serde_json::from_str::<Capacity>("0").is_err());
        assert_eq!(serde_json::to_string(&capacity).expect("plain number"), "4");
    }
}
