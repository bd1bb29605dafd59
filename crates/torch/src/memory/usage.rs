//! Figures of memory in use.

/// Memory in use at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use now: the resident set of the process (CPU) or what tensors hold (CUDA).
    pub current_bytes: u64,
    /// The most that was in use since the start or since [`reset_peak_memory`](crate::reset_peak_memory).
    pub peak_bytes: u64,
    /// What the allocator holds, tensors or not; on the CPU the same as `current_bytes`.
    pub reserved_bytes: u64,
}
