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
//! - [`World`] is the other side: what a rank finds in its environment.
//!   [`follow_launcher`] and [`report_failure`] are a rank's first and last
//!   words.
//!
//! Nothing here needs libtorch: the ranks host their own store at
//! `MASTER_ADDR` and `MASTER_PORT`, a port that is free at every attempt.

mod console;
mod coordinator;
mod environment;
mod error;
mod error_file;
mod failure;
mod follow;
mod framer;
mod group;
mod hub;
mod ids;
mod join;
mod launch;
mod logs;
mod machine;
mod node;
mod plan;
mod pump;
mod server;
mod signals;
mod spec;
mod wire;
mod world;

pub use console::Console;
pub use error::Error;
pub use error_file::write_error_file;
pub use failure::{Exit, Failure, FailureReport, RankFailure};
pub use follow::follow_launcher;
pub use ids::{LocalRank, NodeRank, NodeShare, Placement, Rank};
pub use launch::{LaunchIo, launch};
pub use machine::Machine;
pub use node::{Inbox, Outcome};
pub use plan::{LaunchOptions, LaunchPlan, Program, Timing};
pub use signals::{Forwarding, SignalSender, SignalSet, StopSignal, forward_signals};
pub use spec::{Endpoint, NumNodes, RankCount, RankFilter, RunId, Seconds, StreamSpec, Streams};
pub use world::{Master, World, report_failure};
