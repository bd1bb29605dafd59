//! Settings of a batch.

use std::sync::Arc;

use asyncthink_algorithms::{Aggregation, TokenLoss};
use asyncthink_data::TrainingRow;
use asyncthink_model::Parallelism;
use asyncthink_recipe::OldPolicy;

use crate::head::{HeadSettings, chunk_tokens};
use crate::layerwise::Keep;

/// Micro-batching, loss and loss aggregation of a batch.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of the recipe"
)]
pub struct BatchSettings {
    /// The loss.
    pub loss: Arc<dyn TokenLoss>,
    /// Loss aggregation.
    pub aggregation: Aggregation,
    /// The policy that the probability ratio of the loss is against.
    pub old_policy: OldPolicy,
    /// Whether rows were sampled from a policy, whose entropy, KL and mismatch with the sampler are then measured.
    pub measures_policy: bool,
    /// Temperature that the rows were sampled at; 1 for supervised rows.
    pub temperature: f64,
    /// Most tokens in memory at a time.
    pub micro_batch_tokens: usize,
    /// Whether layers are recomputed in the backward pass, so that only their inputs are kept.
    pub activation_checkpointing: bool,
    /// Whether rows of a micro-batch that begin alike share their beginning, which is then computed once.
    pub share_prefixes: bool,
    /// Whether ranks exchange rows before they compute them, so that all have equally much to compute.
    pub redistribute_rows: bool,
    /// Thread parallelism of a batch.
    pub parallelism: Parallelism,
}

impl BatchSettings {
    pub(crate) fn keep(&self) -> Keep {
        if self.activation_checkpointing {
            Keep::Inputs
        } else {
            Keep::Activations
        }
    }

    /// Whether `row` has a gradient under the loss.
    pub fn has_gradient(&self, row: &TrainingRow) -> bool {
        row.num_trained() > 0 && self.loss.has_gradient(row.advantage())
    }

    pub(crate) fn head(&self, vocab_size: i64) -> HeadSettings {
        HeadSettings {
            temperature: self.temperature,
            chunk_tokens: chunk_tokens(vocab_size),
            entropy: self.measures_policy,
        }
    }
}
