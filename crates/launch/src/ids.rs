//! Numbers of processes and machines, and which process runs where.

use std::fmt;
use std::num::{NonZeroU32, ParseIntError};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most ranks on one node.
pub(crate) const MAX_LOCAL_RANKS: u32 = 1024;

/// Most nodes of a launch.
pub(crate) const MAX_NODES: u32 = 4096;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u32);

        impl $name {
            /// The number as such; counts begin at 0.
            pub const fn new(number: u32) -> Self {
                Self(number)
            }

            /// The number.
            pub const fn get(self) -> u32 {
                self.0
            }

            /// The number as an index into a list of all of them.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                text.parse().map(Self)
            }
        }
    };
}

number! {
    /// A process among all processes of the launch.
    Rank
}
number! {
    /// A process among those of its node.
    LocalRank
}
number! {
    /// A machine, or rather a launcher, among all of the launch.
    NodeRank
}

/// How many ranks every node runs, in the order of the nodes; never empty.
///
/// Ranks are counted through node by node, so that node `k` begins where node
/// `k - 1` ends, and nodes may run different numbers of ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    first: NonZeroU32,
    rest: Vec<NonZeroU32>,
}

/// The ranks of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeShare {
    /// The node.
    pub node_rank: NodeRank,
    /// The rank of its local rank 0.
    pub first_rank: Rank,
    /// Ranks on this node.
    pub num_local_ranks: NonZeroU32,
}

impl NodeShare {
    /// The rank of a local rank.
    pub fn rank(&self, local_rank: LocalRank) -> Rank {
        Rank(self.first_rank.0 + local_rank.0)
    }

    /// All ranks of the node, in order.
    pub fn local_ranks(&self) -> impl Iterator<Item = LocalRank> + use<> {
        (0..self.num_local_ranks.get()).map(LocalRank)
    }
}

impl Placement {
    /// Places ranks on nodes; `None` where there is no node, or more nodes or
    /// ranks than a launch may have.
    pub fn new(num_local_ranks: &[NonZeroU32]) -> Option<Self> {
        let (&first, rest) = num_local_ranks.split_first()?;
        let is_bounded = num_local_ranks.len() <= MAX_NODES as usize
            && num_local_ranks
                .iter()
                .all(|num| num.get() <= MAX_LOCAL_RANKS);
        is_bounded.then(|| Self {
            first,
            rest: rest.to_vec(),
        })
    }

    fn nodes(&self) -> impl Iterator<Item = NonZeroU32> + '_ {
        std::iter::once(self.first).chain(self.rest.iter().copied())
    }

    /// All ranks together.
    pub fn world_size(&self) -> u32 {
        self.nodes().map(NonZeroU32::get).sum()
    }

    /// The ranks of every node, in order.
    pub fn shares(&self) -> Vec<NodeShare> {
        let mut next = 0;
        (0..)
            .zip(self.nodes())
            .map(|(node, num_local_ranks)| {
                let first_rank = Rank(next);
                next += num_local_ranks.get();
                NodeShare {
                    node_rank: NodeRank(node),
                    first_rank,
                    num_local_ranks,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(numbers: &[u32]) -> Vec<NonZeroU32> {
        let numbers = numbers.iter().copied();
        numbers.filter_map(NonZeroU32::new).collect()
    }

    #[test]
    fn what_cannot_be_placed() {
        assert_eq!(Placement::new(&[]), None);
        assert_eq!(Placement::new(&numbers(&[1, MAX_LOCAL_RANKS + 1])), None);
        let many = vec![1; MAX_NODES as usize + 1];
        assert_eq!(Placement::new(&numbers(&many)), None);
    }

    proptest! {
        #[test]
        fn every_rank_is_somewhere_once(nums in prop::collection::vec(1_u32..9, 1..9)) {
            let placement = Placement::new(&numbers(&nums)).expect("bounded");
            let mut ranks = Vec::new();
            for (node, share) in placement.shares().iter().enumerate() {
                prop_assert_eq!(share.node_rank.index(), node);
                prop_assert_eq!(share.num_local_ranks.get(), nums[node]);
                for local_rank in share.local_ranks() {
                    ranks.push(share.rank(local_rank).get());
                }
            }
            let all: Vec<u32> = (0..placement.world_size()).collect();
            prop_assert_eq!(ranks, all);
        }
    }
}
