//! Processes of this node: environment, output and end of its ranks.

mod console;
mod environment;
mod framer;
mod group;
mod logs;
mod pump;
mod rank;

pub use console::Console;
pub(crate) use group::RankGroup;
pub(crate) use logs::LogFolder;
pub(crate) use rank::SpawnContext;
