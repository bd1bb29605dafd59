//! What each kernel computes, in f64 and in the plainest way.

/// A row's RMS norm.
pub(super) fn rms_norm(row: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let squares: f64 = row.iter().map(|value| value * value).sum();
    let scale = 1.0 / (squares / row.len() as f64 + eps).sqrt();
    let values = row.iter().zip(weight);
    values
        .map(|(value, weight)| value * scale * weight)
        .collect()
}

pub(super) fn silu_mul(gate: &[f64], up: &[f64]) -> Vec<f64> {
    let pairs = gate.iter().zip(up);
    pairs
        .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
        .collect()
}

/// A head rotated by its position, halves paired.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the rounding of an angle is part of the result"
)]
pub(super) fn rotate(head: &[f64], position: f64, frequencies: &[f64], factor: f64) -> Vec<f64> {
    let (first, second) = head.split_at(head.len() / 2);
    let angles = || {
        frequencies.iter().map(move |frequency| {
            // The product is rounded to f32, as in `transformers`: that shows at far positions.
            let angle = f64::from((position * frequency) as f32);
            (angle.cos() * factor, angle.sin() * factor)
        })
    };
    let pairs = || first.iter().zip(second).zip(angles());
    let left = pairs().map(|((a, b), (cos, sin))| a * cos - b * sin);
    let right = pairs().map(|((a, b), (cos, sin))| b * cos + a * sin);
    left.chain(right).collect()
}

/// Attention of one query head over keys and values of one length; zeros where there are none.
pub(super) fn attend(query: &[f64], keys: &[&[f64]], values: &[&[f64]]) -> Vec<f64> {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let dot = |key: &&[f64]| query.iter().zip(*key).map(|(q, k)| q * k).sum::<f64>() * scale;
    let scores: Vec<f64> = keys.iter().map(dot).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; query.len()];
    for (value, weight) in values.iter().zip(&weights) {
        for (place, number) in out.iter_mut().zip(*value) {
            *place += number * weight / total;
        }
    }
    out
}
