//! Options as typed, and the plan that they make.

mod launch_plan;
mod machine;
mod options;
mod signal;
mod values;

pub use launch_plan::{LaunchPlan, Program, Timing};
pub(crate) use launch_plan::{Nodes, Sinks};
pub use machine::{Machine, host_name};
pub use options::LaunchOptions;
pub use signal::{SignalSet, StopSignal};
pub use values::{NumNodes, RankCount, RankFilter, RunId, Seconds, StreamSpec, Streams};
