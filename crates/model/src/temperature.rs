//! The range of sampling temperatures.

/// Smallest temperature above 0: smaller numbers have no f32 of full precision.
pub const MIN_TEMPERATURE: f64 = 1.2e-38;
