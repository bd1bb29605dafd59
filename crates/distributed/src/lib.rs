//! Ranks, sharded weights and optimizer state: one way to agree, to gather and to reduce.
//!
//! [`Ranks`] is the group of processes that run a stage together. Trained parameters are one vector ([`flat`]), cut into parts that
//! ranks own: [`AdamW`] keeps the moments of its own part only (ZeRO-1), and a [`ShardedDecoder`] the weights and gradients too
//! (ZeRO-3). Where parameters compute in bf16, the optimizer owns f32 master weights beside the moments. A world of one runs through the same code and moves nothing.
//!
//! Shape legend: `flat` = elements of the vector, gaps included; `owned` = elements that one rank owns, padding included.

mod decay;
mod device;
mod digest;
mod error;
pub mod flat;
mod master;
mod optimizer;
pub mod optimizer_files;
mod ranks;
mod replicated;
mod sharded;
mod tensors;

pub use decay::is_decayed;
pub use device::{DeviceSettings, open_device};
pub use digest::sums_of;
pub use error::{Error, Result, SharedFailure};
pub use master::{ReadParameters, StateOptions};
pub use optimizer::{AdamW, AdamWSettings};
pub use ranks::{RankSettings, Ranks, count_of};
pub use replicated::BucketExchange;
pub use sharded::{Purpose, ShardedDecoder, Sharding};
