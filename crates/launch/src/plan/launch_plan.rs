//! A launch in which all options fit together.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::signal::SignalSet;
use super::values::{RankFilter, RunId, StreamSpec, Streams};
use crate::endpoint::Endpoint;
use crate::ids::{LocalRank, NodeRank};

/// Program that every rank runs, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program's file.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// Time limits of a launch; the defaults are for real runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From asking the ranks to end to killing them: 30 s, as torchrun's.
    pub grace: Duration,
    /// For all nodes to join: 600 s.
    pub join: Duration,
    /// Without a sign of life, after which a node counts as lost: 30 s.
    pub heartbeat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            join: Duration::from_mins(10),
            heartbeat: Duration::from_secs(30),
        }
    }
}

/// A launch in which everything fits together; made by
/// `LaunchOptions::plan` only.
#[derive(Clone, Debug)]
pub struct LaunchPlan {
    pub(crate) program: Program,
    pub(crate) host: String,
    pub(crate) nodes: Nodes,
    pub(crate) num_local_ranks: NonZeroU32,
    pub(crate) master_addr: String,
    /// Fixed by the user; else a free port for every attempt.
    pub(crate) master_port: Option<u16>,
    pub(crate) run_id: RunId,
    pub(crate) max_restarts: u32,
    /// How long failures are gathered before the other ranks are stopped.
    pub(crate) gather: Duration,
    pub(crate) output: OutputPlan,
    pub(crate) signals: SignalSet,
    pub(crate) timing: Timing,
}

impl LaunchPlan {
    /// Returns the launch with other time spans.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The signals that end it.
    pub fn signals(&self) -> &SignalSet {
        &self.signals
    }

    /// Ranks on this node.
    pub fn num_local_ranks(&self) -> u32 {
        self.num_local_ranks.get()
    }
}

/// The machines of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// This one.
    One,
    /// This one and others.
    Several {
        num_nodes: u32,
        /// Without one, the node whose address the endpoint is becomes node 0
        /// and the others are counted as they come.
        node_rank: Option<NodeRank>,
        endpoint: Endpoint,
    },
}

impl Nodes {
    pub(crate) fn num(&self) -> u32 {
        match self {
            Self::One => 1,
            Self::Several { num_nodes, .. } => *num_nodes,
        }
    }
}

/// Destinations of the ranks' output.
#[derive(Clone, Debug)]
pub(crate) struct OutputPlan {
    pub(crate) log_dir: Option<PathBuf>,
    pub(super) redirects: StreamSpec,
    pub(super) tee: StreamSpec,
    pub(super) filter: Option<RankFilter>,
}

/// Destinations of one stream of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sinks {
    pub(crate) file: bool,
    pub(crate) console: bool,
}

impl OutputPlan {
    /// Destinations of standard output and standard error of a rank.
    pub(crate) fn sinks(&self, local_rank: LocalRank) -> (Sinks, Sinks) {
        let redirect = self.redirects.of(local_rank);
        let tee = self.tee.of(local_rank);
        let is_shown = self
            .filter
            .as_ref()
            .is_none_or(|filter| filter.shows(local_rank));
        let sinks = |redirect: bool, tee: bool| Sinks {
            file: redirect || tee,
            // As in torchrun, a stream that is both goes to both.
            console: is_shown && (tee || !redirect),
        };
        (sinks(redirect.out, tee.out), sinks(redirect.err, tee.err))
    }

    /// Whether any rank's output may go into a file.
    pub(crate) fn has_files(&self) -> bool {
        let none = StreamSpec::all(Streams::default());
        self.redirects != none || self.tee != none
    }
}
