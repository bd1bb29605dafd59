//! Attention of a decoding step over a paged cache, of libtorch's own operations: any device, any floating kind.

use tch::{Kind, TchError, Tensor};

use super::{DecodeRows, LayerCache};
use crate::step_batch::RowSpan;

/// Elements of keys, of values or of scores that are in memory at a time: 256 MiB in f32. Every row of a long prompt reads
/// the whole of its sequence, so that rows times length has no other bound.
const MAX_ELEMENTS: i64 = 1 << 26;

/// Writes keys and values of a step into the pages of a layer, then attends.
///
/// ```text
/// out[r, h] = softmax(query[r, h] . keys / sqrt(head_dim)) . values   over positions 0..=position of row r
/// ```
pub(super) fn paged_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    cache: LayerCache<'_>,
    rows: &DecodeRows,
) -> Result<Tensor, TchError> {
    let _no_grad = tch::no_grad_guard();
    if query.size()[0] == 0 {
        return query.f_empty_like();
    }
    for (pages, new) in [(cache.keys, key), (cache.values, value)] {
        let mut flat = pages.f_flatten(0, 1)?;
        let _ = flat.f_index_copy_(0, &rows.slots, &new.f_contiguous()?)?;
    }
    read(query, cache, rows, MAX_ELEMENTS)
}

/// Attends to what the cache holds, in portions of about `max_elements`.
fn read(
    query: &Tensor,
    cache: LayerCache<'_>,
    rows: &DecodeRows,
    max_elements: i64,
) -> Result<Tensor, TchError> {
    let mut outputs = Vec::new();
    let mut next = 0;
    while let Some(&span) = rows.spans.get(next) {
        if span.num_rows == 1 {
            let run = rows.spans[next..]
                .iter()
                .take_while(|one| one.num_rows == 1);
            let len = portion(run, cache, max_elements);
            outputs.push(single_rows(query, cache, rows, next, len)?);
            next += len;
        } else {
            many_rows(query, cache, rows, (next, span), max_elements, &mut outputs)?;
            next += 1;
        }
    }
    match outputs.as_slice() {
        [only] => Ok(only.shallow_clone()),
        _ => Tensor::f_cat(&outputs, 0),
    }
}

/// Number of sequences of a run whose gathered keys stay within the bound, one at the least.
fn portion<'s>(
    run: impl Iterator<Item = &'s RowSpan>,
    cache: LayerCache<'_>,
    max_elements: i64,
) -> usize {
    let size = cache.keys.size();
    let block_elements: i64 = size[1..].iter().product();
    let mut longest = 0;
    let mut len = 0;
    for span in run {
        longest = longest.max((span.first_position / size[1] + 1) * block_elements);
        let elements = (to_size(len) + 1).saturating_mul(longest);
        if len > 0 && elements > max_elements {
            break;
        }
        len += 1;
    }
    len
}

/// Sequences `first..first + len`, which bring one row each: their pages are gathered and padded to the longest.
fn single_rows(
    query: &Tensor,
    cache: LayerCache<'_>,
    rows: &DecodeRows,
    first: usize,
    len: usize,
) -> Result<Tensor, TchError> {
    let spans = &rows.spans[first..first + len];
    let (first_row, num_rows) = (spans[0].first_row, to_size(len));
    let longest = spans.iter().map(|span| span.first_position + 1).max();
    let longest = longest.unwrap_or(1);
    let block_size = cache.keys.size()[1];
    let num_blocks = (longest + block_size - 1) / block_size;
    let tables = rows
        .block_tables
        .f_narrow(0, to_size(first), num_rows)?
        .f_narrow(1, 0, num_blocks)?
        .f_reshape([-1])?;
    let heads_first = |pages: &Tensor| {
        let (kv_heads, head_dim) = (pages.size()[2], pages.size()[3]);
        pages
            .f_index_select(0, &tables)?
            .f_reshape([num_rows, num_blocks * block_size, kv_heads, head_dim])?
            .f_narrow(1, 0, longest)?
            .f_transpose(1, 2)
    };
    let (keys, values) = (heads_first(cache.keys)?, heads_first(cache.values)?);
    let positions = rows.positions.f_narrow(0, first_row, num_rows)?;
    let later = later_than(&positions, longest)?;
    // Slots after the position may hold anything, and 0 * NaN is NaN.
    let values = values.f_masked_fill(&later.f_reshape([num_rows, 1, longest, 1])?, 0.0)?;
    attend(
        &query.f_narrow(0, first_row, num_rows)?,
        &keys,
        &values,
        &later.f_reshape([num_rows, 1, 1, longest])?,
    )
}

/// A sequence that brings several rows: its pages are gathered once, and its rows attend in portions.
fn many_rows(
    query: &Tensor,
    cache: LayerCache<'_>,
    rows: &DecodeRows,
    (index, span): (usize, RowSpan),
    max_elements: i64,
    outputs: &mut Vec<Tensor>,
) -> Result<(), TchError> {
    let length = span.first_position + span.num_rows;
    let block_size = cache.keys.size()[1];
    let num_blocks = (length + block_size - 1) / block_size;
    let table = rows
        .block_tables
        .f_get(to_size(index))?
        .f_narrow(0, 0, num_blocks)?;
    let heads_first = |pages: &Tensor| {
        pages
            .f_index_select(0, &table)?
            .f_flatten(0, 1)?
            .f_narrow(0, 0, length)?
            .f_transpose(0, 1)?
            .f_unsqueeze(0)
    };
    let (keys, values) = (heads_first(cache.keys)?, heads_first(cache.values)?);
    let row_elements = length.saturating_mul(query.size()[1]);
    let portion = (max_elements / row_elements.max(1)).max(1);
    let mut start = 0;
    while start < span.num_rows {
        let num_rows = portion.min(span.num_rows - start);
        let (first, num) = (span.first_row + start, num_rows);
        // Rows beside each other share keys and values: `[1, kv_heads, group * rows, length]` scores.
        let query = query.f_narrow(0, first, num)?;
        let (heads, head_dim) = (query.size()[1], query.size()[2]);
        let kv_heads = keys.size()[1];
        let group = heads / kv_heads;
        let grouped = query
            .f_reshape([num, kv_heads, group, head_dim])?
            .f_permute([1, 2, 0, 3])?
            .f_reshape([1, kv_heads, group * num, head_dim])?;
        let later = later_than(&rows.positions.f_narrow(0, first, num)?, length)?;
        let later = later.f_repeat([group, 1])?;
        let later = later.f_reshape([1, 1, group * num, length])?;
        let output = weighted(&grouped, &keys, &values, &later)?
            .f_reshape([kv_heads, group, num, head_dim])?
            .f_permute([2, 0, 1, 3])?
            .f_reshape([num, heads, head_dim])?;
        outputs.push(output);
        start += num_rows;
    }
    Ok(())
}

/// Whether each of `length` positions comes after that of a row: bool `[rows, length]`.
fn later_than(positions: &Tensor, length: i64) -> Result<Tensor, TchError> {
    let all = Tensor::f_arange(length, (Kind::Int64, positions.device()))?;
    all.f_unsqueeze(0)?.f_gt_tensor(&positions.f_unsqueeze(1)?)
}

/// Attention of rows `[rows, heads, head_dim]`, each over keys and values `[rows, kv_heads, length, head_dim]` of its own.
fn attend(
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    later: &Tensor,
) -> Result<Tensor, TchError> {
    let size = query.size();
    let kv_heads = keys.size()[1];
    let grouped = query.f_reshape([size[0], kv_heads, size[1] / kv_heads, size[2]])?;
    weighted(&grouped, keys, values, later)?.f_reshape(size)
}

/// `softmax(query . keys / sqrt(head_dim)) . values` where a position is not later.
fn weighted(
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    later: &Tensor,
) -> Result<Tensor, TchError> {
    let scale = 1.0 / (query.size()[3] as f64).sqrt();
    query
        .f_matmul(&keys.f_transpose(2, 3)?)?
        .f_mul_scalar(scale)?
        .f_masked_fill(later, f64::NEG_INFINITY)?
        .f_softmax(-1, None)?
        .f_matmul(values)
}

fn to_size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
