//! One check of a device, and what came of it.

use asyncthink_torch::KernelCheck;

/// One check of the device.
pub(super) struct Check {
    /// Name of the check.
    pub(super) name: String,
    /// Finding, or the reason of the failure.
    pub(super) outcome: Result<String, String>,
}

impl Check {
    pub(super) fn new(name: impl Into<String>, outcome: Result<String, String>) -> Self {
        Self {
            name: name.into(),
            outcome,
        }
    }

    /// A difference that must be within a bound.
    pub(super) fn within(name: impl Into<String>, difference: f64, bound: f64) -> Self {
        let found = format!("largest difference {difference:.1e}, bound {bound:.0e}");
        // NaN fails the comparison.
        Self::new(
            name,
            if difference <= bound {
                Ok(found)
            } else {
                Err(found)
            },
        )
    }
}

impl From<KernelCheck> for Check {
    fn from(check: KernelCheck) -> Self {
        Self::within(check.name, check.difference, check.bound)
    }
}
