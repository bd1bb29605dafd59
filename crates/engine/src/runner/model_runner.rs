//! The seam between the engine and what computes its steps.

use asyncthink_model::{Decoder, StepBatch};
use asyncthink_torch::{SampledRow, SamplingBatch};

use crate::error::Result;

/// Computes steps over a cache of its own.
pub(crate) trait ModelRunner: std::fmt::Debug + Send {
    /// Bytes of keys and values that one block takes in all layers.
    fn block_bytes(&self) -> u64;

    /// Allocates the cache; called once.
    fn allocate(&mut self, num_blocks: usize) -> Result<()>;

    /// Drops what was computed from the old weights (packed weights, captured graphs that hold copies).
    fn weights_changed(&mut self);

    /// Runs one step and samples.
    fn run(
        &mut self,
        decoder: &Decoder,
        batch: &StepBatch,
        sampling: &SamplingBatch,
    ) -> Result<Vec<SampledRow>>;
}
