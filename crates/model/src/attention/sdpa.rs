//! Attention over packed segments by the kernels of crate `torch`, or where these do not serve by libtorch's
//! `scaled_dot_product_attention`; by plain operations over the pages of a cache.

use asyncthink_torch::{LayerTensors, segment_attention};
use tch::{Kind, TchError, Tensor};

use super::paged::paged_attention;
use super::{Attention, DecodeRows, LayerCache};
use crate::error::Result;
use crate::segments::Segments;

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
        segments: &Segments,
    ) -> Result<Tensor> {
        if LayerTensors::serves(query.device(), query.kind(), query.size()[2]) {
            let (lens, prefixes) = (segments.lens(), segments.prefixes());
            return Ok(segment_attention(query, key, value, lens, prefixes)?);
        }
        Ok(segmented_attention(query, key, value, segments)?)
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

/// Attends along `segments`: to the segments that a token's own one continues, and causally to its own.
///
/// # Shapes
/// `query` `[tokens, heads, head_dim]`, `key` and `value` `[tokens, kv_heads, head_dim]`. Returns `[tokens, heads, head_dim]`.
fn segmented_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    segments: &Segments,
) -> Result<Tensor, TchError> {
    let heads = query.size()[1];
    let key = repeat_heads(key, heads)?;
    let value = repeat_heads(value, heads)?;
    // One split per operand, not one `narrow` per segment: the backward pass of a split is a single concatenation,
    // while every `narrow` would allocate a gradient of the full packed size.
    let lens = segments.lens();
    let queries = query.f_split_with_sizes(lens, 0)?;
    let keys = key.f_split_with_sizes(lens, 0)?;
    let values = value.f_split_with_sizes(lens, 0)?;
    let mut outputs = Vec::with_capacity(segments.len());
    for (index, query) in queries.iter().enumerate() {
        let chain = segments.chain(index);
        let num_prefix_tokens = segments.first_position(index);
        let along_chain = |parts: &[Tensor]| match chain.as_slice() {
            &[own] => Ok(parts[own].shallow_clone()),
            chain => {
                let parts: Vec<&Tensor> = chain.iter().map(|&index| &parts[index]).collect();
                Tensor::f_cat(&parts, 0)
            }
        };
        let mask = match num_prefix_tokens {
            0 => None,
            prefix => Some(causal_after(prefix, lens[index], query)?),
        };
        let as_batch = |tensor: &Tensor| tensor.f_transpose(0, 1)?.f_unsqueeze(0);
        let attended = Tensor::f_scaled_dot_product_attention(
            &as_batch(query)?,
            &as_batch(&along_chain(&keys)?)?,
            &as_batch(&along_chain(&values)?)?,
            mask.as_ref(),
            0.0,
            mask.is_none(),
            None::<f64>,
            false,
        )?;
        outputs.push(attended.f_squeeze_dim(0)?.f_transpose(0, 1)?);
    }
    Tensor::f_cat(&outputs, 0)
}

/// Which keys the tokens of a segment attend to, bool `[len, prefix + len]`: all of the prefix, and their own segment causally.
/// libtorch's own causal mask counts queries and keys from the same first position.
fn causal_after(prefix: i64, len: i64, like: &Tensor) -> Result<Tensor, TchError> {
    Tensor::f_ones([len, prefix + len], (Kind::Bool, like.device()))?.f_tril(prefix)
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
