//! Numbers that go to a device and come back.

use tch::{Device, Kind, Tensor};

use super::check::KernelCheck;
use crate::cuda_kernels::Kernels;
use crate::error::{OpContext, Result};

const OP: &str = "self_test";

/// A stream of numbers that is the same everywhere (`SplitMix64`), and leaves libtorch's generator alone.
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1, or so many times it.
    pub(super) fn values(&mut self, count: usize, scale: f64) -> Vec<f64> {
        let unit = |bits: u64| (bits >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
        (0..count).map(|_| unit(self.next()) * scale).collect()
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % (limit.max(1) as u64)).unwrap_or(0)
    }

    /// The numbers 0 to `count - 1` in disorder.
    pub(super) fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// A tensor on the device, and its values as the device has them: rounded to its kind.
pub(super) struct Rounded {
    pub(super) tensor: Tensor,
    pub(super) values: Vec<f64>,
}

impl Rounded {
    pub(super) fn new(kernels: Kernels, values: &[f64], shape: &[i64], kind: Kind) -> Result<Self> {
        let on_host = Tensor::from_slice(values)
            .f_to_kind(kind)
            .op(OP)?
            .f_reshape(shape)
            .op(OP)?;
        Ok(Self {
            values: values_of(&on_host)?,
            tensor: on_host.f_to_device(kernels.device()).op(OP)?,
        })
    }
}

pub(super) fn ints(kernels: Kernels, values: &[i32], shape: &[i64]) -> Result<Tensor> {
    let tensor = Tensor::from_slice(values).f_reshape(shape).op(OP)?;
    tensor.f_to_device(kernels.device()).op(OP)
}

/// The values of a tensor, from wherever it is.
pub(super) fn values_of(tensor: &Tensor) -> Result<Vec<f64>> {
    let on_host = tensor
        .f_to_device(Device::Cpu)
        .op(OP)?
        .f_to_kind(Kind::Double)
        .op(OP)?
        .f_contiguous()
        .op(OP)?;
    let mut values = vec![0.0; on_host.numel()];
    on_host.f_copy_data(&mut values, on_host.numel()).op(OP)?;
    Ok(values)
}

/// The values as numbers of a kind hold them.
pub(super) fn rounded(values: &[f64], kind: Kind) -> Result<Vec<f64>> {
    values_of(&Tensor::from_slice(values).f_to_kind(kind).op(OP)?)
}

/// How far `got` is from `expected`.
pub(super) fn difference(got: &[f64], expected: &[f64]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    got.iter()
        .zip(expected)
        .fold(0.0, |largest: f64, (got, expected)| {
            let difference = (got - expected).abs() / expected.abs().max(1.0);
            // `max` would pass over what is not a number.
            if difference <= largest || (got.is_nan() && expected.is_nan()) {
                largest
            } else if difference.is_nan() {
                f64::INFINITY
            } else {
                difference
            }
        })
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    if kind == Kind::Float { "f32" } else { "bf16" }
}

/// A check whose bound depends on the kind.
pub(super) fn check(
    name: &str,
    kind: Kind,
    difference: f64,
    (f32_bound, bf16_bound): (f64, f64),
) -> KernelCheck {
    KernelCheck {
        name: format!("{name} {}", kind_name(kind)),
        difference,
        bound: if kind == Kind::Float {
            f32_bound
        } else {
            bf16_bound
        },
    }
}
