//! The run folder as a rank has it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A rank, its machine, and what it takes for the run folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankFolder {
    /// The rank.
    pub rank: usize,
    /// Name of its machine.
    pub host: String,
    /// The folder there.
    pub folder: PathBuf,
}

impl fmt::Display for RankFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, host, folder } = self;
        write!(f, "rank {rank} on {host} (`{}`)", folder.display())
    }
}
