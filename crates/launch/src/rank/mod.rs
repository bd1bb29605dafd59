//! The rank's side: environment variables, error file, and life tied to the launcher's.

mod error_file;
mod follow;
mod launcher;
mod world;

pub(crate) use error_file::read_error_file;
pub use error_file::write_error_file;
pub(crate) use follow::LAUNCHER_PID;
pub use follow::follow_launcher;
pub use world::{Master, World, report_failure};
