//! A comparison of every kernel with its reference, on the device at hand.
#![expect(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes of cases are small, and what a device gives is rounded already"
)]

pub(super) mod attention;
mod check;
pub(super) mod layer;
mod numbers;
pub(super) mod sampling;
pub(super) mod training;

use tch::{Device, Kind};

pub use check::KernelCheck;

use super::Kernels;
use crate::error::Result;

/// Compares every kernel with its reference on a GPU, for each kind of numbers; takes seconds.
///
/// # Errors
/// When the device is no GPU, or the kernels cannot be opened or started.
pub fn self_test(device: Device) -> Result<Vec<KernelCheck>> {
    let mut checks = run(Kernels::open(device)?)?;
    checks.extend(training::run(device)?);
    Ok(checks)
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
