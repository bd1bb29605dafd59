//! Processes of this node: environment, output and end of its ranks.

mod console;
mod environment;
mod framer;
mod group;
mod logs;
mod pump;

pub use console::Console;
pub(crate) use group::{RankGroup, SpawnContext};
pub(crate) use logs::LogFolder;
