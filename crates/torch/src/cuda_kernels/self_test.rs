//! A comparison of every kernel with its reference, on the device at hand.

pub(super) mod attention;
pub(super) mod layer;
mod numbers;
pub(super) mod sampling;

use tch::{Device, Kind};

use super::Kernels;
use crate::error::Result;

/// How far a kernel is from its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelCheck {
    /// Name of the kernel, its kind of numbers and the case.
    pub name: String,
    /// Largest difference: absolute below 1, relative above. Infinite where something that must be equal is not.
    pub difference: f64,
    /// Largest difference that rounding explains.
    pub bound: f64,
}

impl KernelCheck {
    /// Whether the kernel agrees with its reference.
    pub fn has_passed(&self) -> bool {
        // Written so that what is not a number fails.
        self.difference <= self.bound
    }
}

/// Compares every kernel with its reference on a GPU, for each kind of numbers; takes seconds.
///
/// # Errors
/// When the device is no GPU, or the kernels cannot be opened or started.
pub fn self_test(device: Device) -> Result<Vec<KernelCheck>> {
    run(Kernels::open(device)?)
}

/// The comparison with kernels that are open.
pub(super) fn run(kernels: Kernels) -> Result<Vec<KernelCheck>> {
    let mut checks = Vec::new();
    for kind in [Kind::Float, Kind::BFloat16] {
        checks.extend(layer::run(kernels, kind)?);
        checks.extend(attention::run(kernels, kind)?);
        checks.extend(sampling::run(kernels, kind)?);
    }
    Ok(checks)
}
