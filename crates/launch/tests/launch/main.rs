//! Whole launches, with shell scripts as ranks. Nothing here depends on how
//! long anything takes: what must be awaited is awaited.

mod foreign_peers;
mod nodes;
mod output;
mod processes;
mod ranks;

mod support;
