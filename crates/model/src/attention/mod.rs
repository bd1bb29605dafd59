//! Causal attention: over the segments of a packed batch, and of a decoding step over a KV cache.
//!
//! One file per backend. A decoder is made with one and its layers hold it; threads share it.

mod paged;
pub(crate) mod registry;
mod sdpa;

use tch::{Device, TchError, Tensor};

use crate::error::Result;
use crate::segments::Segments;
use crate::step_batch::{RowSpan, StepBatch};

/// Attention kernels of the decoder layers. Shapes: `query` `[tokens, heads, head_dim]`, `key` and `value` `[tokens, kv_heads, head_dim]`; the
/// result is `[tokens, heads, head_dim]`. Query head `h` uses key-value head `h / (heads / kv_heads)`.
pub trait Attention: std::fmt::Debug + Send + Sync {
    /// The name under which the backend is chosen.
    fn name(&self) -> &'static str;

    /// Attends along the segments of a packed batch, without padding: every token to all tokens of its segment's prefixes, and
    /// causally to its own segment; differentiable. The gradient of a shared segment's keys and values is the sum over all that
    /// attend to it.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn varlen(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        segments: &Segments,
    ) -> Result<Tensor>;

    /// Writes keys and values of a step into the pages of a layer, then attends to each row's sequence up to the row; no
    /// gradient. All rows are written before any attends.
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

/// Keys and values of one layer that a cache holds, `[blocks, block_size, kv_heads, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct LayerCache<'a> {
    /// The keys.
    pub keys: &'a Tensor,
    /// The values.
    pub values: &'a Tensor,
}

/// Where the rows of a decoding step belong; tensors are i64 on the device of the model.
#[derive(Debug)]
pub struct DecodeRows {
    /// Blocks of each sequence `[sequences, max_blocks]`, padded with 0.
    pub block_tables: Tensor,
    /// Position of each row in its sequence `[rows]`.
    pub positions: Tensor,
    /// Place of each row in the pages `[rows]`: `block * block_size + offset`.
    pub slots: Tensor,
    /// Rows of each sequence, on the host.
    pub spans: Vec<RowSpan>,
}

impl DecodeRows {
    /// Those of a batch that was checked, for a cache of blocks of `block_size` tokens.
    pub(crate) fn new(
        batch: &StepBatch,
        block_size: usize,
        device: Device,
    ) -> Result<Self, TchError> {
        let spans: Vec<RowSpan> = batch.spans().collect();
        let size = i64::try_from(block_size).unwrap_or(i64::MAX);
        let mut positions = Vec::with_capacity(batch.num_rows());
        let mut slots = Vec::with_capacity(batch.num_rows());
        for (span, table) in spans.iter().zip(batch.block_tables()) {
            for position in span.first_position..span.first_position + span.num_rows {
                let index = usize::try_from(position / size).unwrap_or(usize::MAX);
                let block = table.get(index).copied().unwrap_or(-1);
                positions.push(position);
                slots.push(i64::from(block) * size + position % size);
            }
        }
        let max_blocks = batch.block_tables().map(<[i32]>::len).max().unwrap_or(0);
        let mut tables = vec![0_i64; spans.len() * max_blocks];
        if max_blocks > 0 {
            for (padded, table) in tables
                .chunks_exact_mut(max_blocks)
                .zip(batch.block_tables())
            {
                for (place, &block) in padded.iter_mut().zip(table) {
                    *place = i64::from(block);
                }
            }
        }
        let shape = [spans.len(), max_blocks].map(|size| i64::try_from(size).unwrap_or(0));
        let on_device = |values: &[i64]| Tensor::from_slice(values).f_to_device(device);
        Ok(Self {
            block_tables: on_device(&tables)?.f_reshape(shape)?,
            positions: on_device(&positions)?,
            slots: on_device(&slots)?,
            spans,
        })
    }
}
