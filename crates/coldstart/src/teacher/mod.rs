//! Teachers: who writes the traces.
//!
//! A teacher takes a batch of lessons, each a problem with a topology, and gives raw traces or reasons. Topologies, the rule
//! filter, pairs and files are shared and know no task.

mod registry;
mod seam;
mod solver;

pub use registry::Registry;
pub use seam::{Draft, Lesson, Teacher, TeacherContext, TraceWriter};
