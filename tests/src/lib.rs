//! Helpers of the end-to-end tests: the recipe, the program, and a folder to run it in.

mod process;
mod program;
pub mod tiny;
mod workspace;

pub use process::{num_lines, send, wait_for_lines};
pub use program::program;
pub use workspace::{Workspace, stdout};
