//! Operations between ranks: c10d's store, process groups and collectives, from the libtorch that is linked anyway.
//!
//! Tensors are moved by gloo on the CPU and by NCCL on GPUs; nothing here moves any. What this module adds is what a
//! trainer needs when something goes wrong: every operation ends within its time, a failure names operation, phase and
//! the ranks that are silent or behind, and ranks that have come to disagree are found by a comparison, not by a hang.
#![expect(unsafe_code, reason = "calls the C++ side")]

mod bounded;
mod failure;
pub(crate) mod ffi;
mod flight;
mod group;
mod meeting;
mod operations;
mod options;
mod rendezvous;
mod same;
mod shared;
mod store;
mod watch;
mod work;

#[cfg(test)]
mod tests;

pub(crate) use failure::FailureKind;
pub use failure::{CollectiveFailure, Suspect, SuspectReason};
pub use flight::{FlightRecord, Operation, Traffic};
pub use group::ProcessGroup;
pub use operations::Reduction;
pub use options::{Backend, GroupOptions};
pub use same::Difference;
pub use store::{Store, StoreOptions};
pub use work::Work;
