//! Causal attention: over the segments of a packed batch, and of a decoding step over a KV cache.
//!
//! One file per backend. A decoder is made with one and its layers hold it; threads share it.

pub(crate) mod registry;
mod sdpa;

use tch::Tensor;

use crate::error::Result;

/// Attention kernels of the decoder layers. Shapes: `query` `[tokens, heads, head_dim]`, `key` and `value` `[tokens, kv_heads, head_dim]`; the
/// result is `[tokens, heads, head_dim]`. Query head `h` uses key-value head `h / (heads / kv_heads)`.
pub trait Attention: std::fmt::Debug + Send + Sync {
    /// The name under which the backend is chosen.
    fn name(&self) -> &'static str;

    /// Attends inside each segment of a packed batch, causally and without padding; differentiable. `segment_lens` sums to
    /// `tokens`.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn varlen(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        segment_lens: &[i64],
    ) -> Result<Tensor>;

    /// Writes keys and values of a step into the cache of a layer, then attends to each row's sequence up to the row; no gradient.
    ///
    /// # Errors
    /// When libtorch or a kernel refuses an operation.
    fn decode(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        cache: LayerCache<'_>,
        rows: &DecodeRows,
    ) -> Result<Tensor>;
}

/// Keys and values of one layer that a cache holds, `[slots, kv_heads, capacity, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct LayerCache<'a> {
    /// The keys.
    pub keys: &'a Tensor,
    /// The values.
    pub values: &'a Tensor,
}

/// Where the rows of a decoding step belong, i64 `[rows]` on the device of the model.
#[derive(Debug)]
pub struct DecodeRows {
    /// The cache slot of each row.
    pub slots: Tensor,
    /// The position of each row in its sequence.
    pub positions: Tensor,
}
