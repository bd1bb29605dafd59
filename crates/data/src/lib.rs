//! Rows, prompt and chat templates, tokenisation, packing and Parquet.
//!
//! Everything here is ids, masks and lengths, never tensors, so that the crate builds and tests without libtorch. The trainer
//! reads nothing but [`TrainingRow`]s: it never learns which task, role or tag a token came from.
//!
//! Invariants live in types. A [`TrainingRow`] cannot hold vectors of unequal length; [`PromptTemplates`] cannot lack the
//! placeholder that carries the question; a Parquet file of the wrong kind, a damaged one, or one cut short is a typed
//! [`Error`] that names the file and is never a panic.

mod atomic;
mod batches;
mod chat;
mod companions;
mod error;
mod evaluation_sample;
mod folder;
mod pack;
pub mod parquet;
mod row;
mod row_bytes;
mod seeds;
mod special_tokens;
mod task_tokenizer;
mod template;
mod tokenizer;

pub use crate::atomic::{remove_stale_temporaries, write_atomic, write_bytes_atomic};
pub use crate::batches::{Batch, Batches};
pub use crate::chat::{ChatMessage, ChatOptions, ChatSettings, ChatTemplate};
pub use crate::error::Error;
pub use crate::evaluation_sample::evaluation_sample;
pub use crate::folder::SynthFolder;
pub use crate::pack::{
    MIN_SHARED_TOKENS, PackedRows, Packer, Prefixes, RowCosts, RowSize, costs_of_workers, pack,
};
pub use crate::row::{EpisodeIndex, RowLabel, TrainingRow};
pub use crate::seeds::{DataOrder, Draws, Stream, derive_seed, epoch_order, permutation};
pub use crate::task_tokenizer::{TaskTokenizerConfig, task_tokenizer};
pub use crate::template::{PromptTemplates, PromptText};
pub use crate::tokenizer::{PromptForm, TokenId, Tokenizer};

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
