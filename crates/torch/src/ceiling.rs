//! What the machine can do, to compare with: figures of different days and machines mean little without it.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

/// Rows and columns of the product that is measured.
const SIZE: i64 = 1024;

/// How often it is measured; the best counts, because a busy machine only ever takes away.
const NUM_TRIALS: usize = 10;

/// Rate of a 1024 cubed f32 matrix product on the CPU, in floating-point operations a second, with as many threads as
/// libtorch has at the time.
pub fn matmul_flops_per_sec() -> f64 {
    let operand = || Tensor::randn([SIZE, SIZE], (Kind::Float, Device::Cpu));
    let (a, b) = (operand(), operand());
    let best = (0..NUM_TRIALS)
        .map(|_| {
            let start = Instant::now();
            let _ = a.matmul(&b);
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * (SIZE as f64).powi(3) / best
}
