//! The gradient of a batch of rows: packed micro-batches, chunked output head, layer-by-layer backward pass.
//!
//! Rows of ids with a mask, log-probabilities and an advantage come in; gradients in the optimizer's vector and metrics come out.
//! Nothing here knows a tag, a task or a role. Two rules hold:
//! 1. **The gradient is a sum over tokens.** Every normaliser is computed from the whole batch before the first micro-batch
//!    ([`asyncthink_algorithms::Aggregation::weights`]), so cutting and packing cannot change the gradient.
//! 2. **No `[tokens, vocab]` tensor is larger than one chunk**, in scoring or training ([`head`]).
//!
//! Shape legend: `tokens` = packed tokens of a micro-batch, `trained` = tokens with a loss mask of one, `hidden`, `vocab`.

mod accumulate;
mod costs;
mod error;
#[cfg(test)]
mod golden_policy_tests;
#[cfg(test)]
mod golden_tests;
pub mod head;
mod layers;
mod layerwise;
mod metrics;
mod micro_batch;
mod mismatch;
mod policy;
mod redistribute;
mod row_scores;
mod score;
mod settings;
mod sharded_layers;
mod token_loss;
mod weights;

pub use accumulate::{PackedBatch, accumulate_gradient};
pub use error::{Error, Result};
pub use metrics::BatchMetrics;
pub use micro_batch::MicroBatch;
pub use mismatch::{Mismatch, mismatch_of_rows};
pub use policy::{PolicyModel, PolicySettings, WholeDecoder, load_reference};
pub use redistribute::rows_of_rank;
pub use row_scores::score_rows_with;
pub use score::{score_rows, score_sequences};
pub use settings::BatchSettings;
pub use weights::Weights;
