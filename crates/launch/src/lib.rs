//! Turns one command into ranks: environment, rendezvous, restarts, logs.
//!
//! Options and environment are torchrun's, so that a rank need not know which
//! of the two started it, and neither need who types. What happens inside
//! differs: every failure of a rank, on whichever node, stops all ranks and
//! starts all of them anew, in one place, the [`Outcome`] of a node is the
//! same on all nodes, and the first failure is told by time and not by who
//! noticed it first.
//!
//! - [`LaunchOptions`] are options as typed; [`LaunchOptions::plan`] gives a
//!   [`LaunchPlan`], in which they fit together.
//! - [`launch`] carries it out. Every node starts and stops its own ranks;
//!   node 0 decides when, for all. The launchers speak to one another over
//!   TCP, a line of JSON at a time, of nothing else.
//! - [`World`] is the rank's side, read from its environment. A rank calls
//!   [`follow_launcher`] first and, when it fails, [`report_failure`] last.
//!
//! Layers, from the bottom: `ids`, `failure`; `plan` (options in, plan out);
//! `wire` (messages, connections); `rank` (the rank's side); `process` (ranks
//! of this node); `hub` (decisions of node 0); `node` (one node, the whole).
//!
//! Nothing here needs libtorch: the ranks host their own store at
//! `MASTER_ADDR` and `MASTER_PORT`, a port that is free at every attempt.

mod endpoint;
mod error;
mod event;
mod failure;
mod hub;
mod ids;
mod node;
mod plan;
mod process;
mod rank;
mod wire;

pub use endpoint::Endpoint;
pub use error::Error;
pub use event::{Inbox, SignalSender};
pub use failure::{Exit, Failure, FailureReport, RankFailure};
pub use ids::{LocalRank, NodeRank, NodeShare, Placement, Rank};
pub use node::{Forwarding, LaunchIo, Outcome, forward_signals, launch};
pub use plan::{
    LaunchOptions, LaunchPlan, Machine, NumNodes, Program, RankCount, RankFilter, RunId, Seconds,
    SignalSet, StopSignal, StreamSpec, Streams, Timing, host_name,
};
pub use process::Console;
pub use rank::{Master, World, follow_launcher, report_failure, write_error_file};
