use serde::{Deserialize, Serialize};

use crate::SubQueryId;

/// The rule that an organizer broke. Generation of an episode stops at its first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FormatError {
    /// A Fork of a sub-query that is outstanding: forked and not joined yet.
    #[error("fork of sub-query `{id}` while it is outstanding")]
    DuplicateSubQuery {
        /// The sub-query named by the Fork.
        id: SubQueryId,
    },
    /// A Fork while every worker place is taken. A place is taken from the Fork to its Join.
    #[error("fork of sub-query `{id}` while all worker places are taken: {max_workers}")]
    PoolOverflow {
        /// The sub-query named by the Fork.
        id: SubQueryId,
        /// The number of worker places, `c - 1`.
        max_workers: u32,
    },
    /// A Join of a sub-query that is not outstanding: never forked, or joined already.
    #[error("join of sub-query `{id}`, which is not outstanding")]
    UnknownJoin {
        /// The sub-query named by the Join.
        id: SubQueryId,
    },
    /// The organizer stopped, or was cut, without a complete Answer.
    #[error("the organizer ended without a complete answer")]
    NoAnswer,
    /// A Fork that is not well formed.
    #[error("malformed: {0}")]
    Malformed(MalformedKind),
}

impl FormatError {
    /// The code of each kind of error, in the order of the variants.
    pub const CODES: [&'static str; 5] = [
        "duplicate_sub_query",
        "pool_overflow",
        "unknown_join",
        "no_answer",
        "malformed",
    ];

    /// The stable code in metrics and in the output of `trace`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::DuplicateSubQuery { .. } => "duplicate_sub_query",
            Self::PoolOverflow { .. } => "pool_overflow",
            Self::UnknownJoin { .. } => "unknown_join",
            Self::NoAnswer => "no_answer",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// The subtypes of [`FormatError::Malformed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MalformedKind {
    /// The organizer ended inside a Fork.
    #[error("the fork of sub-query `{id}` is never closed")]
    UnclosedFork {
        /// The sub-query of the open Fork.
        id: SubQueryId,
    },
    /// A Fork opened inside a Fork.
    #[error("fork of sub-query `{inner}` inside the fork of sub-query `{outer}`")]
    NestedFork {
        /// The sub-query of the Fork that was open.
        outer: SubQueryId,
        /// The sub-query of the Fork inside it.
        inner: SubQueryId,
    },
    /// A Join inside a Fork.
    #[error("join of sub-query `{join}` inside the fork of sub-query `{fork}`")]
    JoinInsideFork {
        /// The sub-query of the Fork that was open.
        fork: SubQueryId,
        /// The sub-query named by the Join.
        join: SubQueryId,
    },
    /// More Forks than the guard `max_forks` allows.
    #[error("more forks than `max_forks` allows: {max_forks}")]
    TooManyForks {
        /// The guard's value.
        max_forks: u32,
    },
}
