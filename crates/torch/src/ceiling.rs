//! Rates that the machine reaches at best, for benchmarks to compare with: figures of different days and machines mean little
//! without them.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use crate::error::{OpContext as _, Result};

/// Rows and columns of the product that is measured on the CPU.
const CPU_SIZE: i64 = 1024;

/// Rows and columns of the product that is measured on a GPU, which smaller ones do not fill.
const GPU_SIZE: i64 = 8192;

/// How often it is measured; the best counts, because a busy machine only ever takes away.
const NUM_TRIALS: usize = 10;

const PRODUCT: &str = "a matrix product";
const READING: &str = "reading a buffer";

/// How often a buffer is read.
const NUM_READS: usize = 5;

/// Bytes that are read to measure the bandwidth: more than any cache holds, at least twice a last-level cache.
const BUFFER_BYTES: i64 = 512 << 20;

/// Rate of a 1024 cubed f32 matrix product on the CPU, in floating-point operations a second, with as many threads as
/// libtorch has at the time.
pub fn matmul_flops_per_sec() -> f64 {
    matmul_flops_per_sec_of(Kind::Float, Device::Cpu).unwrap_or(f64::NAN)
}

/// Rate of a large matrix product of a number type on a device, in floating-point operations a second; on the CPU with as
/// many threads as libtorch has at the time.
///
/// # Errors
/// When the device has no memory for it, or no product of this type.
pub fn matmul_flops_per_sec_of(kind: Kind, device: Device) -> Result<f64> {
    let (size, products) = match device {
        Device::Cpu => (CPU_SIZE, 1),
        // Queued together, so that starting them is hidden.
        _ => (GPU_SIZE, 4),
    };
    let operand = || Tensor::f_randn([size, size], (kind, device)).op(PRODUCT);
    let (a, b) = (operand()?, operand()?);
    let mut best = f64::INFINITY;
    for _ in 0..NUM_TRIALS {
        let start = Instant::now();
        let mut product = a.f_matmul(&b).op(PRODUCT)?;
        for _ in 1..products {
            product = a.f_matmul(&b).op(PRODUCT)?;
        }
        wait_for(&product)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (size as f64).powi(3) * f64::from(products) / best)
}

/// Rate of reading a buffer larger than the caches of a device, in bytes a second; on the CPU with as many threads as
/// libtorch has at the time.
///
/// # Errors
/// When the device has no memory for the buffer.
pub fn read_bytes_per_sec(device: Device) -> Result<f64> {
    let num_bytes = BUFFER_BYTES.max(2 * last_level_cache_bytes());
    let buffer = Tensor::f_ones([num_bytes / 4], (Kind::Float, device)).op(READING)?;
    let mut best = f64::INFINITY;
    for _ in 0..NUM_READS {
        let start = Instant::now();
        wait_for(&buffer.f_sum(Kind::Float).op(READING)?)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(num_bytes as f64 / best)
}

/// Waits until a tensor is computed, which a GPU does on its own: the host must see a value of it.
fn wait_for(tensor: &Tensor) -> Result<()> {
    let see = || {
        let first = tensor.f_flatten(0, -1)?.f_narrow(0, 0, 1)?;
        first.f_to_kind(Kind::Double)?.f_double_value(&[0])
    };
    see().op("reading a value back")?;
    Ok(())
}

/// Size of the largest cache of the first core; 0 where it cannot be told.
fn last_level_cache_bytes() -> i64 {
    let sizes = (0..8).filter_map(|index| {
        let file = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(file).ok()?;
        let text = text.trim();
        let (digits, unit) = match text.strip_suffix('K') {
            Some(digits) => (digits, 1 << 10),
            None => match text.strip_suffix('M') {
                Some(digits) => (digits, 1 << 20),
                None => (text, 1),
            },
        };
        digits.parse::<i64>().ok()?.checked_mul(unit)
    });
    sizes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_positive_in_every_number_type() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let rate = matmul_flops_per_sec_of(kind, Device::Cpu).unwrap();
            assert!(rate.is_finite() && rate > 0.0, "{kind:?}: {rate}");
        }
        let rate = read_bytes_per_sec(Device::Cpu).unwrap();
        assert!(rate.is_finite() && rate > 0.0, "{rate}");
        assert!(matmul_flops_per_sec_of(Kind::Bool, Device::Cpu).is_err());
    }
}
