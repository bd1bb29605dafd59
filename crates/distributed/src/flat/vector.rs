//! Views of a vector, by ranges of its elements.

use std::ops::Range;

use tch::{TchError, Tensor};

/// Elements of f32 in 64 bytes: a cache line, and what vector instructions like best.
pub(super) const ALIGNMENT: usize = 16;

/// View of some elements of a vector.
///
/// # Errors
/// When they are not in it.
pub fn narrow(flat: &Tensor, elements: &Range<usize>) -> Result<Tensor, TchError> {
    flat.f_narrow(0, signed(elements.start), signed(elements.len()))
}

/// A size as libtorch takes it.
pub fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
