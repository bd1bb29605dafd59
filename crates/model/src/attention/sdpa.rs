//! Attention by libtorch's `scaled_dot_product_attention` over packed segments, and by plain operations over the pages of a
//! cache.

use tch::{TchError, Tensor};

use super::paged::paged_attention;
use super::{Attention, DecodeRows, LayerCache};
use crate::error::Result;

/// The default backend.
#[derive(Debug)]
pub(super) struct Sdpa;

impl Attention for Sdpa {
    fn name(&self) -> &'static str {
        "sdpa"
    }

    fn varlen(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        segment_lens: &[i64],
    ) -> Result<Tensor> {
        Ok(segmented_attention(query, key, value, segment_lens)?)
    }

    fn decode(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        cache: LayerCache<'_>,
        rows: &DecodeRows,
    ) -> Result<Tensor> {
        Ok(paged_attention(query, key, value, cache, rows)?)
    }
}

/// Attends causally inside each segment, with no padding and nothing shared across segments.
///
/// # Shapes
/// `query` `[tokens, heads, head_dim]`, `key` and `value` `[tokens, kv_heads, head_dim]`; `segment_lens` sums to
/// `tokens`. Returns `[tokens, heads, head_dim]`.
fn segmented_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    segment_lens: &[i64],
) -> Result<Tensor, TchError> {
    let heads = query.size()[1];
    let key = repeat_heads(key, heads)?;
    let value = repeat_heads(value, heads)?;
    // One split per operand, not one `narrow` per segment: the backward pass of a split is a single concatenation,
    // while every `narrow` would allocate a gradient of the full packed size.
    let queries = query.f_split_with_sizes(segment_lens, 0)?;
    let keys = key.f_split_with_sizes(segment_lens, 0)?;
    let values = value.f_split_with_sizes(segment_lens, 0)?;
    let mut outputs = Vec::with_capacity(segment_lens.len());
    for ((query, key), value) in queries.iter().zip(&keys).zip(&values) {
        let as_batch = |tensor: &Tensor| tensor.f_transpose(0, 1)?.f_unsqueeze(0);
        let attended = Tensor::f_scaled_dot_product_attention::<&Tensor>(
            &as_batch(query)?,
            &as_batch(key)?,
            &as_batch(value)?,
            None,
            0.0,
            true,
            None::<f64>,
            false,
        )?;
        outputs.push(attended.f_squeeze_dim(0)?.f_transpose(0, 1)?);
    }
    Tensor::f_cat(&outputs, 0)
}

/// Repeats every key-value head for the query heads of its group: `[tokens, kv_heads, d]` to `[tokens, heads, d]`.
fn repeat_heads(tensor: &Tensor, heads: i64) -> Result<Tensor, TchError> {
    let size = tensor.size();
    let (tokens, kv_heads, head_dim) = (size[0], size[1], size[2]);
    if kv_heads == heads {
        return Ok(tensor.shallow_clone());
    }
    tensor
        .f_unsqueeze(2)?
        .f_expand([tokens, kv_heads, heads / kv_heads, head_dim], false)?
        .f_reshape([tokens, heads, head_dim])
}
