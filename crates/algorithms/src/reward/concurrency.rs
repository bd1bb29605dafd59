//! The concurrency reward.

/// `R_eta = min(eta/c, tau) / tau`, in `(0, 1]`.
///
/// # Paper
/// arXiv:2510.26658, Eq. (2).
pub fn concurrency(eta_ratio: f64, tau: f64) -> f64 {
    eta_ratio.min(tau) / tau
}

/// Whether the concurrency reward is paid to an episode of this accuracy; gated, only where something is right.
pub fn is_paid(gate_concurrency: bool, accuracy: f64) -> bool {
    !gate_concurrency || accuracy > 0.0
}
