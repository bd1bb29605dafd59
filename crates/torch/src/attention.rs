//! Attention of one decode step over slot caches.
#![expect(unsafe_code, reason = "calls the C++ side")]

use tch::{Device, Kind, Tensor};

use crate::error::{Error, OpContext, Result};
use crate::ffi;

/// Largest `head_dim` that the CPU kernel takes; above it the portable path runs.
pub const MAX_KERNEL_HEAD_DIM: i64 = 256;

const OP: &str = "decode_attention_";

/// Keys, and as many values, that the portable path gathers at a time, in elements: 256 MiB each in f32. Every row of
/// a long prompt reads the whole of its sequence, so that rows times length has no other bound.
const MAX_GATHERED_ELEMENTS: i64 = 1 << 26;

/// One decode step: writes each row's key and value into its slot, then attends to all of the slot up to the row.
///
/// ```text
/// k_cache[slots[b], :, positions[b]] = k_new[b];  v_cache likewise
/// out[b, h] = softmax(q[b, h] . keys / sqrt(head_dim)) . values   over positions 0..=positions[b]
/// ```
///
/// Query head `h` uses key-value head `h / (heads / kv_heads)`. The caches are changed in place, whatever `&Tensor`
/// suggests. A sequence may bring several rows with successive positions (a prompt): all rows are written before any
/// is read, so that prefill and decoding share one batch. Each row's result is computed alone: it does not depend on
/// other sequences in the batch, nor on the number of threads. No gradient.
///
/// On the CPU with f32 caches this is a kernel of ours; else [`decode_attention_portable_`].
///
/// # Shapes
/// `q` `[batch, heads, head_dim]`; `k_new`, `v_new` `[batch, kv_heads, head_dim]`; `k_cache`, `v_cache`
/// `[slots, kv_heads, max_len, head_dim]`, contiguous; `slots`, `positions` `[batch]` of i64, each pair
/// once. All on one device and, but for the last two, of one floating kind. Gives `[batch, heads, head_dim]`.
///
/// # Errors
/// A wrong shape, kind, device or layout; on the CPU also a slot or position outside the cache.
pub fn decode_attention_(
    q: &Tensor,
    k_new: &Tensor,
    v_new: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    slots: &Tensor,
    positions: &Tensor,
) -> Result<Tensor> {
    let sizes = Sizes::check(q, k_new, v_new, k_cache, v_cache, slots, positions)?;
    let kernel = q.device() == Device::Cpu && q.kind() == Kind::Float;
    if !kernel || sizes.head_dim > MAX_KERNEL_HEAD_DIM {
        let caches = (k_cache, v_cache);
        write(k_new, v_new, caches, slots, positions)?;
        return read(&sizes, q, caches, slots, positions, MAX_GATHERED_ELEMENTS);
    }
    let (q, k_new, v_new) = (q.contiguous(), k_new.contiguous(), v_new.contiguous());
    let (slots, positions) = (slots.contiguous(), positions.contiguous());
    let mut output = std::ptr::null_mut();
    // SAFETY: all are live tensors of the shapes, kinds and layout just checked, which the kernel relies on; on
    // success `output` is a new tensor that nobody else owns.
    unsafe {
        let message = ffi::asyncthink_decode_attention(
            q.as_ptr(),
            k_new.as_ptr(),
            v_new.as_ptr(),
            k_cache.as_ptr(),
            v_cache.as_ptr(),
            slots.as_ptr(),
            positions.as_ptr(),
            &raw mut output,
        );
        ffi::check(OP, message)?;
        Ok(Tensor::from_ptr(output))
    }
}

/// [`decode_attention_`] from libtorch's own operations, on any device and for any floating kind.
///
/// It gathers the used part of the caches, up to the longest sequence in the batch, for so many rows at a time that
/// memory stays bounded.
///
/// # Errors
/// As [`decode_attention_`]; on CUDA a slot or position outside the cache is found only by the device.
pub fn decode_attention_portable_(
    q: &Tensor,
    k_new: &Tensor,
    v_new: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    slots: &Tensor,
    positions: &Tensor,
) -> Result<Tensor> {
    let sizes = Sizes::check(q, k_new, v_new, k_cache, v_cache, slots, positions)?;
    let caches = (k_cache, v_cache);
    write(k_new, v_new, caches, slots, positions)?;
    read(&sizes, q, caches, slots, positions, MAX_GATHERED_ELEMENTS)
}

/// Writes every row's key and value into the caches.
fn write(
    k_new: &Tensor,
    v_new: &Tensor,
    (k_cache, v_cache): (&Tensor, &Tensor),
    slots: &Tensor,
    positions: &Tensor,
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    if k_new.size()[0] == 0 {
        return Ok(());
    }
    for (cache, new) in [(k_cache, k_new), (v_cache, v_new)] {
        // The two index tensors are apart, so that their common dimension comes first: `[batch, kv_heads, head_dim]`.
        let place = [Some(slots), None, Some(positions)];
        let _ = cache
            .shallow_clone()
            .f_index_put_(&place, new, false)
            .op(OP)?;
    }
    Ok(())
}

/// Attends to what the caches hold, in chunks of rows of at most `max_elements` gathered keys (one row at the least).
fn read(
    sizes: &Sizes,
    q: &Tensor,
    caches: (&Tensor, &Tensor),
    slots: &Tensor,
    positions: &Tensor,
    max_elements: i64,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    if sizes.batch == 0 {
        return q.f_empty_like().op(OP);
    }
    let longest = positions
        .f_max()
        .op(OP)?
        .f_int64_value(&[])
        .op(OP)?
        .saturating_add(1);
    let row_elements = longest
        .saturating_mul(sizes.kv_heads)
        .saturating_mul(sizes.head_dim);
    let chunk_rows = (max_elements / row_elements.max(1)).max(1);
    let mut outputs = Vec::new();
    let mut start = 0;
    while start < sizes.batch {
        let num_rows = chunk_rows.min(sizes.batch - start);
        let rows = |tensor: &Tensor| tensor.f_narrow(0, start, num_rows).op(OP);
        let (q, slots, positions) = (rows(q)?, rows(slots)?, rows(positions)?);
        outputs.push(read_rows(sizes, &q, caches, &slots, &positions, longest)?);
        start += num_rows;
    }
    match outputs.as_slice() {
        [only] => Ok(only.shallow_clone()),
        _ => Tensor::f_cat(&outputs, 0).op(OP),
    }
}

/// Attention of some rows over the first `longest` positions of their slots.
fn read_rows(
    sizes: &Sizes,
    q: &Tensor,
    (k_cache, v_cache): (&Tensor, &Tensor),
    slots: &Tensor,
    positions: &Tensor,
    longest: i64,
) -> Result<Tensor> {
    let num_rows = q.size()[0];
    let gather = |cache: &Tensor| -> Result<Tensor> {
        cache
            .f_narrow(2, 0, longest)
            .op(OP)?
            .f_index_select(0, slots)
            .op(OP)
    };
    let (keys, values) = (gather(k_cache)?, gather(v_cache)?);

    let group = sizes.heads / sizes.kv_heads;
    let scale = 1.0 / (sizes.head_dim as f64).sqrt();
    let grouped = q
        .f_reshape([num_rows, sizes.kv_heads, group, sizes.head_dim])
        .op(OP)?;
    let scores = grouped
        .f_matmul(&keys.f_transpose(2, 3).op(OP)?)
        .op(OP)?
        .f_mul_scalar(scale)
        .op(OP)?;
    let later = Tensor::f_arange(longest, (Kind::Int64, q.device())).op(OP)?;
    let later = later
        .f_unsqueeze(0)
        .op(OP)?
        .f_gt_tensor(&positions.f_unsqueeze(1).op(OP)?)
        .op(OP)?;
    let later = later.f_reshape([num_rows, 1, 1, longest]).op(OP)?;
    let weights = scores
        .f_masked_fill(&later, f64::NEG_INFINITY)
        .op(OP)?
        .f_softmax(-1, None)
        .op(OP)?;
    // A slot's rows after the position may hold anything, and 0 * NaN is NaN.
    let unused = later.f_reshape([num_rows, 1, longest, 1]).op(OP)?;
    let values = values.f_masked_fill(&unused, 0.0).op(OP)?;
    let output = weights.f_matmul(&values).op(OP)?;
    output
        .f_reshape([num_rows, sizes.heads, sizes.head_dim])
        .op(OP)
}

/// The sizes of one call whose arguments fit each other.
struct Sizes {
    batch: i64,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

impl Sizes {
    fn check(
        q: &Tensor,
        k_new: &Tensor,
        v_new: &Tensor,
        k_cache: &Tensor,
        v_cache: &Tensor,
        slots: &Tensor,
        positions: &Tensor,
    ) -> Result<Self> {
        let &[batch, heads, head_dim] = q.size().as_slice() else {
            return Err(wrong("q", "of shape [batch, heads, head_dim]", &q.size()));
        };
        let &[num_slots, kv_heads, max_len, _] = k_cache.size().as_slice() else {
            return Err(wrong(
                "k_cache",
                "of shape [slots, kv_heads, max_len, head_dim]",
                &k_cache.size(),
            ));
        };
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(wrong(
                "q",
                &format!("of a multiple of {kv_heads} heads"),
                &heads,
            ));
        }
        let cache = [num_slots, kv_heads, max_len, head_dim];
        let new = [batch, kv_heads, head_dim];
        for (argument, tensor, shape) in [
            ("k_cache", k_cache, &cache[..]),
            ("v_cache", v_cache, &cache[..]),
            ("k_new", k_new, &new[..]),
            ("v_new", v_new, &new[..]),
            ("slots", slots, &[batch][..]),
            ("positions", positions, &[batch][..]),
        ] {
            if tensor.size() != shape {
                return Err(wrong(
                    argument,
                    &format!("of shape {shape:?}"),
                    &tensor.size(),
                ));
            }
            if tensor.device() != q.device() {
                return Err(wrong(
                    argument,
                    &format!("on {:?}", q.device()),
                    &tensor.device(),
                ));
            }
            let kind = if shape.len() == 1 {
                Kind::Int64
            } else {
                q.kind()
            };
            if tensor.kind() != kind {
                return Err(wrong(
                    argument,
                    &format!("of kind {kind:?}"),
                    &tensor.kind(),
                ));
            }
            if shape.len() == 4 && !tensor.is_contiguous() {
                return Err(wrong(argument, "contiguous", &"a view with other strides"));
            }
        }
        Ok(Sizes {
            batch,
            heads,
            kv_heads,
            head_dim,
        })
    }
}

fn wrong(argument: &'static str, expected: &str, got: &dyn std::fmt::Debug) -> Error {
    Error::Argument {
        op: OP,
        argument,
        expected: expected.to_owned(),
        got: format!("{got:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs of one step; the cache holds NaN where nothing was written.
    struct Step {
        q: Tensor,
        k_new: Tensor,
        v_new: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
        positions: Tensor,
    }

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    impl Step {
        fn random(
            heads: i64,
            kv_heads: i64,
            head_dim: i64,
            max_len: i64,
            places: &[(i64, i64)],
        ) -> Self {
            tch::manual_seed(heads * 1000 + head_dim);
            let batch = i64::try_from(places.len()).unwrap();
            let num_slots = batch + 2;
            let cache = || Tensor::full([num_slots, kv_heads, max_len, head_dim], f64::NAN, FLOAT);
            let (k_cache, v_cache) = (cache(), cache());
            for &(slot, position) in places {
                for cache in [&k_cache, &v_cache] {
                    let mut past = cache.get(slot).narrow(1, 0, position);
                    past.copy_(&(Tensor::randn([kv_heads, position, head_dim], FLOAT) * 2.0));
                }
            }
            let (slots, positions): (Vec<i64>, Vec<i64>) = places.iter().copied().unzip();
            Step {
                q: Tensor::randn([batch, heads, head_dim], FLOAT) * 2.0,
                k_new: Tensor::randn([batch, kv_heads, head_dim], FLOAT),
                v_new: Tensor::randn([batch, kv_heads, head_dim], FLOAT),
                k_cache,
                v_cache,
                slots: Tensor::from_slice(&slots),
                positions: Tensor::from_slice(&positions),
            }
        }

        fn copy(&self) -> Self {
            let mut copy = Step { ..self.shallow() };
            copy.k_cache = self.k_cache.copy();
            copy.v_cache = self.v_cache.copy();
            copy
        }

        fn shallow(&self) -> Self {
            Step {
                q: self.q.shallow_clone(),
                k_new: self.k_new.shallow_clone(),
                v_new: self.v_new.shallow_clone(),
                k_cache: self.k_cache.shallow_clone(),
                v_cache: self.v_cache.shallow_clone(),
                slots: self.slots.shallow_clone(),
                positions: self.positions.shallow_clone(),
            }
        }

        fn kernel(&self) -> Result<Tensor> {
            let Step {
                q,
                k_new,
                v_new,
                k_cache,
                v_cache,
                slots,
                positions,
            } = self;
            decode_attention_(q, k_new, v_new, k_cache, v_cache, slots, positions)
        }

        fn portable(&self) -> Result<Tensor> {
            let Step {
                q,
                k_new,
                v_new,
                k_cache,
                v_cache,
                slots,
                positions,
            } = self;
            decode_attention_portable_(q, k_new, v_new, k_cache, v_cache, slots, positions)
        }
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn kernel_equals_portable_path() {
        let places = [(3, 0), (0, 40), (1, 7), (5, 128)];
        for (heads, kv_heads, head_dim) in [
            (4, 2, 16),
            (8, 2, 32),
            (4, 4, 64),
            (16, 8, 128),
            (3, 1, 20),
            (2, 1, 256),
            (6, 2, 7),
        ] {
            let step = Step::random(heads, kv_heads, head_dim, 130, &places);
            let other = step.copy();
            let (kernel, portable) = (step.kernel().unwrap(), other.portable().unwrap());
            let difference = max_difference(&kernel, &portable);
            assert!(
                difference < 1e-5,
                "{heads}/{kv_heads} heads of {head_dim}: {difference}"
            );
            for (cache, expected) in [
                (&step.k_cache, &other.k_cache),
                (&step.v_cache, &other.v_cache),
            ] {
                assert!(cache.allclose(expected, 0.0, 0.0, true), "caches differ");
            }
        }
    }

    #[test]
    fn both_equal_the_formula_in_f64() {
        let step = Step::random(4, 2, 16, 12, &[(1, 9)]);
        let kernel = step.kernel().unwrap();
        for head in 0..4 {
            let past = |cache: &Tensor| {
                cache
                    .get(1)
                    .get(head / 2)
                    .narrow(0, 0, 10)
                    .to_kind(Kind::Double)
            };
            let query = step.q.get(0).get(head).to_kind(Kind::Double);
            let weights = (past(&step.k_cache).mv(&query) / 4.0).softmax(0, None);
            let expected = past(&step.v_cache).transpose(0, 1).mv(&weights);
            let difference =
                max_difference(&kernel.get(0).get(head).to_kind(Kind::Double), &expected);
            assert!(difference < 2e-6, "head {head}: {difference}");
        }
    }

    #[test]
    fn rows_of_one_sequence_in_one_call_equal_one_call_each() {
        let places = [(2, 3), (0, 5), (2, 4), (2, 5)];
        let step = Step::random(4, 2, 32, 64, &places);
        let (portable, one_by_one) = (step.copy(), step.copy());
        let together = step.kernel().unwrap();
        assert!(max_difference(&together, &portable.portable().unwrap()) < 1e-5);
        for row in 0..4 {
            let mut single = one_by_one.shallow();
            for tensor in [
                &mut single.q,
                &mut single.k_new,
                &mut single.v_new,
                &mut single.slots,
                &mut single.positions,
            ] {
                *tensor = tensor.narrow(0, row, 1);
            }
            assert!(
                max_difference(&single.kernel().unwrap().get(0), &together.get(row)) == 0.0,
                "row {row}"
            );
        }
    }

    #[test]
    fn result_does_not_depend_on_the_batch() {
        let places = [(3, 20), (0, 40), (1, 7)];
        let step = Step::random(8, 4, 32, 64, &places);
        let together = step.kernel().unwrap();
        for row in 0..3 {
            let mut alone = step.copy();
            for tensor in [
                &mut alone.q,
                &mut alone.k_new,
                &mut alone.v_new,
                &mut alone.slots,
                &mut alone.positions,
            ] {
                *tensor = tensor.narrow(0, row, 1);
            }
            let alone = alone.kernel().unwrap();
            assert!(
                max_difference(&alone.get(0), &together.get(row)) == 0.0,
                "row {row}"
            );
        }
    }

    #[test]
    fn rows_in_chunks_equal_all_rows_at_once() {
        // Rows of one prompt fall into several chunks: a chunk reads what a later one brought.
        let places = [(2, 4), (0, 5), (2, 3), (1, 30), (2, 5)];
        let step = Step::random(4, 2, 16, 64, &places);
        let whole = step.copy().portable().unwrap();
        let sizes = Sizes {
            batch: 5,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
        };
        let caches = (&step.k_cache, &step.v_cache);
        write(
            &step.k_new,
            &step.v_new,
            caches,
            &step.slots,
            &step.positions,
        )
        .unwrap();
        let row = 31 * 2 * 16;
        for max_elements in [0, 2 * row, 3 * row + 1, 5 * row] {
            let chunked = read(
                &sizes,
                &step.q,
                caches,
                &step.slots,
                &step.positions,
                max_elements,
            )
            .unwrap();
            assert_eq!(chunked.size(), whole.size());
            let difference = max_difference(&chunked, &whole);
            assert!(difference < 1e-6, "{max_elements}: {difference}");
        }
    }

    #[test]
    fn extreme_scores_stay_finite() {
        let mut step = Step::random(2, 1, 16, 8, &[(0, 5)]);
        step.q = &step.q * 1e4;
        let output = step.kernel().unwrap();
        assert!(bool::try_from(output.isfinite().all()).unwrap());
        assert!(max_difference(&output, &step.portable().unwrap()) < 1e-5);
    }

    #[test]
    fn empty_batch_and_views_are_taken() {
        let step = Step::random(2, 1, 16, 8, &[]);
        assert_eq!(step.kernel().unwrap().size(), [0, 2, 16]);
        assert_eq!(step.portable().unwrap().size(), [0, 2, 16]);

        let mut step = Step::random(2, 2, 16, 8, &[(0, 3), (1, 5)]);
        let fused = Tensor::cat(&[&step.q, &step.k_new, &step.v_new], 1);
        let expected = step.copy().kernel().unwrap();
        step.q = fused.narrow(1, 0, 2);
        step.k_new = fused.narrow(1, 2, 2);
        step.v_new = fused.narrow(1, 4, 2);
        assert!(max_difference(&step.kernel().unwrap(), &expected) == 0.0);
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let refused = |change: &dyn Fn(&mut Step)| {
            let mut step = Step::random(4, 2, 16, 8, &[(0, 3), (1, 5)]);
            change(&mut step);
            step.kernel().unwrap_err().to_string()
        };
        for (message, change) in [
            (
                "`decode_attention_`: `k_new` must be of shape [2, 2, 16], not [2, 2, 8]",
                (&|s: &mut Step| s.k_new = s.k_new.narrow(2, 0, 8)) as &dyn Fn(&mut Step),
            ),
            (
                "`decode_attention_`: `v_cache` must be contiguous, not \"a view with other strides\"",
                &|s| {
                    s.v_cache = s.v_cache.transpose(0, 3).contiguous().transpose(0, 3);
                },
            ),
            (
                "`decode_attention_`: `slots` must be of kind Int64, not Int",
                &|s| {
                    s.slots = s.slots.to_kind(Kind::Int);
                },
            ),
            (
                "`decode_attention_` failed: position 8 of row 0 is outside a cache of 8 positions",
                &|s| s.positions = s.positions.full_like(8),
            ),
            (
                "`decode_attention_` failed: slot -1 of row 0 is outside a cache of 4 slots",
                &|s| {
                    s.slots = &s.slots - 1;
                },
            ),
        ] {
            assert_eq!(refused(change), message);
        }
    }

    #[test]
    fn other_kinds_take_the_portable_path() {
        let step = Step::random(4, 2, 16, 8, &[(0, 3), (1, 5)]);
        let expected = step.copy().kernel().unwrap();
        let mut half = step;
        for tensor in [
            &mut half.q,
            &mut half.k_new,
            &mut half.v_new,
            &mut half.k_cache,
            &mut half.v_cache,
        ] {
            *tensor = tensor.to_kind(Kind::BFloat16);
        }
        let output = half.kernel().unwrap();
        assert_eq!(output.kind(), Kind::BFloat16);
        assert!(max_difference(&output.to_kind(Kind::Float), &expected) < 0.1);
    }
}
