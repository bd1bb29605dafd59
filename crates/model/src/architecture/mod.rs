//! Families of decoders: how each of them reads `config.json`.
//!
//! One file per family. It fills in the defaults of the family's configuration class in `transformers` for the keys in which
//! families differ; [`ModelConfig`](crate::ModelConfig) reads the rest, which they share.

mod llama;
mod qwen2;
mod qwen3;
pub(crate) mod registry;

use crate::error::Result;
use crate::fields::Fields;

/// A family of decoders.
pub trait Architecture: std::fmt::Debug + Sync {
    /// The family's `model_type`.
    fn model_type(&self) -> &'static str;

    /// Reads the keys in which families differ.
    ///
    /// # Errors
    /// When a key is missing or has a value of another type.
    fn read(&self, fields: &Fields<'_>, sizes: Sizes) -> Result<Variant>;
}

/// Sizes that every family needs to know to fill in its defaults.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Query heads.
    pub num_attention_heads: i64,
}

/// The terms in which families differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Key and value heads.
    pub num_key_value_heads: i64,
    /// Width of one head.
    pub head_dim: i64,
    /// Which projections add a bias.
    pub biases: Biases,
    /// Whether queries and keys are normalised head by head.
    pub has_query_key_norm: bool,
}

/// Which projections add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Biases {
    /// Queries, keys and values.
    pub query_key_value: bool,
    /// The projection from heads to the residual stream.
    pub attention_output: bool,
    /// All three of the feed-forward block.
    pub feed_forward: bool,
}
