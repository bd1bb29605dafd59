//! Runners: what computes and samples a step on a device. One file a runner.

mod cpu;
mod portable;

use asyncthink_model::{Decoder, ModelConfig, StepBatch};
use asyncthink_torch::{SampledRow, SamplingBatch};
use tch::Device;

use crate::error::Result;
use crate::settings::EngineSettings;
pub(crate) use cpu::CpuRunner;
pub(crate) use portable::PortableRunner;

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

/// The runner for decoders of a configuration on a device.
pub(crate) fn runner_for(
    config: &ModelConfig,
    device: Device,
    settings: &EngineSettings,
) -> Result<Box<dyn ModelRunner>> {
    if CpuRunner::supports(config, device, settings) {
        return Ok(Box::new(CpuRunner::new(config, settings)?));
    }
    let runner = PortableRunner::new(config, device, settings)?;
    Ok(Box::new(runner))
}
