//! Sampling.

use tch::{Kind, Tensor};

use super::check::KernelCheck;
use super::numbers::{Numbers, Rounded, check, ints, values_of};
use crate::cuda_kernels::{Kernels, SAMPLING_ROW_BYTES, read_sampled_rows, write_sampling_row};
use crate::error::{OpContext, Result};
use crate::sampling::{ReferenceSampler, SampledRow, SamplingRow};

const PLAIN: SamplingRow = SamplingRow {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    seed: 0,
    position: 0,
};

/// The ways to sample, each with how many ids it bans.
fn cases() -> Vec<(&'static str, SamplingRow, usize)> {
    vec![
        ("plain", PLAIN, 0),
        ("plain, banned", PLAIN, 40),
        (
            "greedy",
            SamplingRow {
                temperature: 0.0,
                ..PLAIN
            },
            0,
        ),
        (
            "greedy, banned",
            SamplingRow {
                temperature: 0.0,
                ..PLAIN
            },
            300,
        ),
        (
            "hot",
            SamplingRow {
                temperature: 1.7,
                ..PLAIN
            },
            0,
        ),
        (
            "cold",
            SamplingRow {
                temperature: 1e-30,
                ..PLAIN
            },
            1,
        ),
        ("top-k", SamplingRow { top_k: 7, ..PLAIN }, 0),
        ("top-k of 1", SamplingRow { top_k: 1, ..PLAIN }, 3),
        (
            "top-k of all",
            SamplingRow {
                top_k: 100_000,
                ..PLAIN
            },
            3,
        ),
        (
            "top-p",
            SamplingRow {
                top_p: 0.8,
                ..PLAIN
            },
            0,
        ),
        (
            "top-p of little",
            SamplingRow {
                top_p: 1e-6,
                ..PLAIN
            },
            0,
        ),
        (
            "min-p",
            SamplingRow {
                min_p: 0.07,
                ..PLAIN
            },
            2,
        ),
        (
            "top-k, top-p",
            SamplingRow {
                top_k: 50,
                top_p: 0.9,
                temperature: 0.7,
                ..PLAIN
            },
            9,
        ),
        (
            "top-k, min-p",
            SamplingRow {
                top_k: 20,
                min_p: 0.02,
                ..PLAIN
            },
            0,
        ),
    ]
}

pub(in crate::cuda_kernels) fn run(kernels: Kernels, kind: Kind) -> Result<Vec<KernelCheck>> {
    let mut checks = Vec::new();
    // Below and above what a block of threads reads at once; spread out, crowded, and with many equal numbers.
    for (vocab, spread, step) in [
        (37, 3.0, 0.0),
        (5000, 12.0, 0.0),
        (2500, 0.05, 0.0),
        (3000, 4.0, 0.5),
    ] {
        checks.push(compare(kernels, kind, vocab, spread, step)?);
    }
    checks.push(not_finite(kernels, kind)?);
    Ok(checks)
}

fn compare(
    kernels: Kernels,
    kind: Kind,
    vocab: usize,
    spread: f64,
    step: f64,
) -> Result<KernelCheck> {
    let cases = cases();
    let mut numbers = Numbers::new(vocab as u64);
    let mut values = numbers.values(cases.len() * vocab, spread);
    if step > 0.0 {
        for value in &mut values {
            *value = (*value / step).round() * step;
        }
    }
    let logits = Rounded::new(kernels, &values, &[cases.len() as i64, vocab as i64], kind)?;
    let mut samples = Vec::new();
    for (index, (_, row, num_banned)) in cases.iter().enumerate() {
        let banned: Vec<i64> = (0..*num_banned)
            .map(|_| i64::try_from(numbers.below(vocab)).unwrap_or(0))
            .collect();
        let (seed, position) = (numbers.next(), (index as u64) << 33 | 5);
        samples.push((
            SamplingRow {
                seed,
                position,
                ..*row
            },
            banned,
        ));
    }
    let got = sample(kernels, &logits, &samples)?;
    let mut apart = 0.0_f64;
    let mut reference = ReferenceSampler::default();
    for (index, (row, banned)) in samples.iter().enumerate() {
        let logits: Vec<f32> = logits.values[index * vocab..(index + 1) * vocab]
            .iter()
            .map(|&value| value as f32)
            .collect();
        let expected = reference.sample(&logits, row, banned);
        apart = apart.max(rows_apart(&got[index], &expected));
    }
    let name = format!("sample {vocab} ids");
    // Sums of some thousand exponentials in f32.
    Ok(check(&name, kind, apart, (1e-5, 1e-5)))
}

fn rows_apart(got: &SampledRow, expected: &SampledRow) -> f64 {
    if got.token != expected.token {
        return f64::INFINITY;
    }
    let pairs = [
        (got.logprob, expected.logprob),
        (got.raw_logprob, expected.raw_logprob),
    ];
    pairs
        .into_iter()
        .fold(0.0, |largest: f64, (got, expected)| {
            if got.is_nan() && expected.is_nan() {
                return largest;
            }
            let apart = f64::from((got - expected).abs()) / f64::from(expected.abs().max(1.0));
            if apart.is_nan() {
                f64::INFINITY
            } else {
                largest.max(apart)
            }
        })
}

/// Logits that are not finite are told by a log-probability that is not a number; minus infinity is a logit like others.
fn not_finite(kernels: Kernels, kind: Kind) -> Result<KernelCheck> {
    const VOCAB: usize = 64;
    let mut values = Numbers::new(9).values(4 * VOCAB, 2.0);
    values[5] = f64::NAN;
    values[VOCAB + 7] = f64::INFINITY;
    values[2 * VOCAB..3 * VOCAB].fill(f64::NEG_INFINITY);
    values[3 * VOCAB..].fill(f64::NEG_INFINITY);
    values[3 * VOCAB + 33] = 1.0;
    let logits = Rounded::new(kernels, &values, &[4, VOCAB as i64], kind)?;
    let got = sample(kernels, &logits, &vec![(PLAIN, Vec::new()); 4])?;
    let is_right = got[..3].iter().all(|row| row.logprob.is_nan())
        && got[3].token == 33
        && got[3].logprob == 0.0
        && got[3].raw_logprob == 0.0;
    let apart = if is_right { 0.0 } else { f64::INFINITY };
    Ok(check(
        "sample of what is not finite",
        kind,
        apart,
        (0.0, 0.0),
    ))
}

fn sample(
    kernels: Kernels,
    logits: &Rounded,
    samples: &[(SamplingRow, Vec<i64>)],
) -> Result<Vec<SampledRow>> {
    const OP: &str = "self_test";
    let mut rows = vec![0; samples.len() * SAMPLING_ROW_BYTES];
    let (mut cu_banned, mut banned) = (vec![0], Vec::new());
    for ((row, ids), bytes) in samples.iter().zip(rows.chunks_mut(SAMPLING_ROW_BYTES)) {
        write_sampling_row(row, bytes);
        banned.extend(ids.iter().map(|&id| i32::try_from(id).unwrap_or(-1)));
        cu_banned.push(i32::try_from(banned.len()).unwrap_or(i32::MAX));
    }
    let rows = Tensor::from_slice(&rows)
        .f_reshape([samples.len() as i64, SAMPLING_ROW_BYTES as i64])
        .op(OP)?
        .f_to_device(kernels.device())
        .op(OP)?;
    let out = kernels.sample(
        &logits.tensor,
        &rows,
        &ints(kernels, &cu_banned, &[cu_banned.len() as i64])?,
        &ints(kernels, &banned, &[banned.len() as i64])?,
    )?;
    let bytes: Vec<u8> = values_of(&out)?
        .into_iter()
        .map(|byte| byte as u8)
        .collect();
    Ok(read_sampled_rows(&bytes).collect())
}
