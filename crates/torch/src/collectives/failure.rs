//! What is known when a collective fails.

use std::fmt;
use std::time::Duration;

use super::flight::FlightRecord;

/// What kind of failure it was, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Time ran out.
    Timeout,
    /// A connection broke.
    PeerLost,
    /// Something else.
    Other,
}

/// A collective that failed, on the rank that reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveFailure {
    /// The operation.
    pub record: FlightRecord,
    /// The reporting rank.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
    /// The time that the operation had.
    pub timeout: Duration,
    /// c10d's words.
    pub message: String,
    /// The ranks that are silent or behind, as far as the store could tell.
    pub suspects: Vec<Suspect>,
}

/// A rank that may be the reason for the failure of a collective.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// The rank.
    pub rank: usize,
    /// Why it is suspected.
    pub reason: SuspectReason,
    /// Number of the last collective that it is known to have started; it tells twice a second.
    pub sequence: u64,
    /// The last phase that it is known to have begun; empty for none.
    pub phase: String,
}

/// Why a rank may be the reason for the failure of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuspectReason {
    /// It never joined, or did not come to a barrier.
    Missing,
    /// It gives no sign of life: killed, stopped or cut off.
    Silent,
    /// It lives and has not started the collective that failed.
    Behind,
}

impl Suspect {
    /// A rank that did not come.
    pub(super) fn missing(rank: usize) -> Self {
        Suspect {
            rank,
            reason: SuspectReason::Missing,
            sequence: 0,
            phase: String::new(),
        }
    }
}

impl fmt::Display for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Suspect { rank, phase, .. } = self;
        match self.reason {
            SuspectReason::Missing => write!(f, "rank {rank} did not come")?,
            SuspectReason::Silent => write!(f, "rank {rank} gives no sign of life, last seen")?,
            SuspectReason::Behind => write!(f, "rank {rank} is behind")?,
        }
        if self.reason != SuspectReason::Missing {
            write!(f, " at collective {}", self.sequence)?;
        }
        if !phase.is_empty() {
            write!(f, " in `{phase}`")?;
        }
        Ok(())
    }
}

impl CollectiveFailure {
    /// Name of the operation.
    pub fn op(&self) -> &'static str {
        self.record.operation.name()
    }
}

/// The second half of a message, whose first half says what happened to which operation.
impl fmt::Display for CollectiveFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FlightRecord {
            sequence,
            phase,
            bytes,
            ..
        } = &self.record;
        write!(f, "on rank {} of {}", self.rank, self.world_size)?;
        if !phase.is_empty() {
            write!(f, " in `{phase}`")?;
        }
        write!(f, " (collective {sequence}")?;
        if *bytes > 0 {
            write!(f, ", {bytes} bytes")?;
        }
        write!(f, "): {}", self.message)?;
        for suspect in &self.suspects {
            write!(f, "; {suspect}")?;
        }
        Ok(())
    }
}

/// Message of a failure that ranks cause by not coming.
pub(super) const NOT_ALL: &str = "not all ranks came";

/// Says that the process that serves the store at `address` is stopped, dead or cut off.
pub(super) fn no_answer(address: &str) -> String {
    format!("the store at `{address}` does not answer")
}
