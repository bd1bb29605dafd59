//! Norms, rotary positions, the gate, copies of blocks.

use tch::Kind;

use super::check::KernelCheck;
use super::numbers::{Numbers, Rounded, check, difference, ints, rounded, values_of};
use crate::cuda_kernels::{KERNEL_HEAD_DIMS, Kernels, RopeAndCache, reference};
use crate::error::Result;

/// One rounding of bf16 is at most 1/512 of a number.
const ONE_ROUNDING: (f64, f64) = (1e-5, 1.0 / 256.0);

pub(in crate::cuda_kernels) fn run(kernels: Kernels, kind: Kind) -> Result<Vec<KernelCheck>> {
    let mut checks = vec![
        // A width that vectors divide, one that they do not, and one above the threads of a block.
        add_rms_norm(kernels, kind, 3, 192, true)?,
        add_rms_norm(kernels, kind, 2, 77, true)?,
        add_rms_norm(kernels, kind, 1, 8200, false)?,
        silu_mul(kernels, kind, 5, 96)?,
        silu_mul(kernels, kind, 3, 37)?,
        copy_blocks(kernels, kind)?,
    ];
    for head_dim in KERNEL_HEAD_DIMS {
        checks.push(rope_and_cache(kernels, kind, head_dim, true)?);
        checks.push(rope_and_cache(kernels, kind, head_dim, false)?);
    }
    Ok(checks)
}

fn add_rms_norm(
    kernels: Kernels,
    kind: Kind,
    rows: usize,
    hidden: usize,
    with_x: bool,
) -> Result<KernelCheck> {
    const EPS: f64 = 1e-6;
    let mut numbers = Numbers::new(hidden as u64);
    let shape = [rows as i64, hidden as i64];
    let x = Rounded::new(kernels, &numbers.values(rows * hidden, 2.0), &shape, kind)?;
    let residual = Rounded::new(kernels, &numbers.values(rows * hidden, 2.0), &shape, kind)?;
    let weight = Rounded::new(kernels, &numbers.values(hidden, 1.5), &shape[1..], kind)?;
    let added = with_x.then_some(&x.tensor);
    let out = kernels.add_rms_norm_(added, &residual.tensor, &weight.tensor, EPS)?;

    let sums: Vec<f64> = residual
        .values
        .iter()
        .zip(&x.values)
        .map(|(residual, x)| if with_x { residual + x } else { *residual })
        .collect();
    let sums = rounded(&sums, kind)?;
    let expected: Vec<f64> = sums
        .chunks(hidden)
        .flat_map(|row| reference::rms_norm(row, &weight.values, EPS))
        .collect();
    let apart = difference(&values_of(&out)?, &expected);
    let residual_apart = difference(&values_of(&residual.tensor)?, &sums);
    let name = format!("add_rms_norm {rows}x{hidden}");
    Ok(check(&name, kind, apart.max(residual_apart), ONE_ROUNDING))
}

fn silu_mul(kernels: Kernels, kind: Kind, rows: usize, width: usize) -> Result<KernelCheck> {
    let values = Numbers::new(width as u64).values(rows * 2 * width, 6.0);
    let shape = [rows as i64, 2 * width as i64];
    let gate_up = Rounded::new(kernels, &values, &shape, kind)?;
    let out = kernels.silu_mul(&gate_up.tensor)?;
    let expected: Vec<f64> = gate_up
        .values
        .chunks(2 * width)
        .flat_map(|row| reference::silu_mul(&row[..width], &row[width..]))
        .collect();
    let apart = difference(&values_of(&out)?, &expected);
    Ok(check(
        &format!("silu_mul {rows}x{width}"),
        kind,
        apart,
        ONE_ROUNDING,
    ))
}

fn rope_and_cache(
    kernels: Kernels,
    kind: Kind,
    head_dim: i64,
    with_norm: bool,
) -> Result<KernelCheck> {
    const HEADS: usize = 6;
    const KV_HEADS: usize = 2;
    const BLOCKS: usize = 3;
    const BLOCK_SIZE: usize = 16;
    const EPS: f64 = 1e-6;
    const FACTOR: f64 = 1.25;
    // The third row is padding; 2000 radians are far from 0.
    const POSITIONS: [i32; 4] = [0, 7, 3, 2000];
    const SLOTS: [i32; 4] = [17, 0, -1, 47];
    let dims = usize::try_from(head_dim).unwrap_or(1);
    let mut numbers = Numbers::new(dims as u64);
    let all_heads = HEADS + 2 * KV_HEADS;
    let rows = POSITIONS.len();
    let qkv_values = numbers.values(rows * all_heads * dims, 2.0);
    let qkv_shape = [rows as i64, (all_heads * dims) as i64];
    let qkv = Rounded::new(kernels, &qkv_values, &qkv_shape, kind)?;
    let norms = [
        Rounded::new(kernels, &numbers.values(dims, 1.5), &[head_dim], kind)?,
        Rounded::new(kernels, &numbers.values(dims, 1.5), &[head_dim], kind)?,
    ];
    let halves = dims / 2;
    let frequencies: Vec<f64> = (0..halves)
        .map(|i| 1e4_f64.powf(-(i as f64) / halves as f64))
        .collect();
    let frequencies = Rounded::new(kernels, &frequencies, &[head_dim / 2], Kind::Float)?;
    let cache_shape = [BLOCKS as i64, BLOCK_SIZE as i64, KV_HEADS as i64, head_dim];
    let cache_values = numbers.values(BLOCKS * BLOCK_SIZE * KV_HEADS * dims, 1.0);
    let mut k_cache = Rounded::new(kernels, &cache_values, &cache_shape, kind)?;
    let mut v_cache = Rounded::new(kernels, &cache_values, &cache_shape, kind)?;
    let q = kernels.rope_and_cache_(&RopeAndCache {
        qkv: &qkv.tensor,
        query_key_norm: with_norm.then_some([&norms[0].tensor, &norms[1].tensor]),
        eps: EPS,
        frequencies: &frequencies.tensor,
        attention_factor: FACTOR,
        positions: &ints(kernels, &POSITIONS, &[rows as i64])?,
        slots: &ints(kernels, &SLOTS, &[rows as i64])?,
        k_cache: &k_cache.tensor,
        v_cache: &v_cache.tensor,
        heads: HEADS as i64,
    })?;

    let mut expected_q = Vec::new();
    for (index, head) in qkv.values.chunks(dims).enumerate() {
        let (row, head_index) = (index / all_heads, index % all_heads);
        let position = f64::from(POSITIONS[row]);
        let turned = |norm: &Rounded| {
            let head = if with_norm {
                reference::rms_norm(head, &norm.values, EPS)
            } else {
                head.to_vec()
            };
            reference::rotate(&head, position, &frequencies.values, FACTOR)
        };
        if head_index < HEADS {
            expected_q.extend(turned(&norms[0]));
            continue;
        }
        let Ok(slot) = usize::try_from(SLOTS[row]) else {
            continue;
        };
        let kv_head = (head_index - HEADS) % KV_HEADS;
        let is_key = head_index < HEADS + KV_HEADS;
        let (cache, written) = if is_key {
            (&mut k_cache, turned(&norms[1]))
        } else {
            (&mut v_cache, head.to_vec())
        };
        let start = (slot * KV_HEADS + kv_head) * dims;
        cache.values[start..start + dims].copy_from_slice(&written);
    }
    let apart = [
        difference(&values_of(&q)?, &expected_q),
        difference(&values_of(&k_cache.tensor)?, &k_cache.values),
        difference(&values_of(&v_cache.tensor)?, &v_cache.values),
    ];
    let norm = if with_norm { " with norms" } else { "" };
    let name = format!("rope_and_cache head_dim {head_dim}{norm}");
    let apart = apart.into_iter().fold(0.0, f64::max);
    // A sine of 2000 radians and its reference differ by the rounding of the angle's product with f32.
    Ok(check(&name, kind, apart, (2e-4, 1.0 / 256.0)))
}

fn copy_blocks(kernels: Kernels, kind: Kind) -> Result<KernelCheck> {
    const PLANES: usize = 4;
    const BLOCKS: usize = 6;
    const ELEMENTS: usize = 16 * 2 * 16;
    let values = Numbers::new(5).values(PLANES * BLOCKS * ELEMENTS, 1.0);
    let shape = [PLANES as i64, BLOCKS as i64, 16, 2, 16];
    let mut cache = Rounded::new(kernels, &values, &shape, kind)?;
    // The last two name a block that is not there.
    let copies = ints(kernels, &[4, 1, 0, 5, 2, 6, -1, 3], &[4, 2])?;
    kernels.copy_blocks_(&cache.tensor, &copies)?;
    for plane in cache.values.chunks_mut(BLOCKS * ELEMENTS) {
        for (from, to) in [(4, 1), (0, 5)] {
            plane.copy_within(from * ELEMENTS..(from + 1) * ELEMENTS, to * ELEMENTS);
        }
    }
    let apart = difference(&values_of(&cache.tensor)?, &cache.values);
    Ok(check("copy_blocks", kind, apart, (0.0, 0.0)))
}
