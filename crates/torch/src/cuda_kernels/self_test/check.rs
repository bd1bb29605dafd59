//! The result of a comparison.

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
