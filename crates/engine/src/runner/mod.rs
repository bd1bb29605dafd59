//! Runners: what computes and samples a step on a device. One file a runner.

mod cpu;
mod cuda;
mod model_runner;
mod portable;

use asyncthink_model::ModelConfig;
use tch::Device;

use crate::error::Result;
use crate::settings::EngineSettings;
pub(crate) use cpu::CpuRunner;
pub(crate) use cuda::CudaRunner;
pub(crate) use model_runner::ModelRunner;
pub(crate) use portable::PortableRunner;

/// The runner for decoders of a configuration on a device.
pub(crate) fn runner_for(
    config: &ModelConfig,
    device: Device,
    settings: &EngineSettings,
) -> Result<Box<dyn ModelRunner>> {
    if CpuRunner::supports(config, device, settings) {
        return Ok(Box::new(CpuRunner::new(config, settings)?));
    }
    if CudaRunner::supports(config, device, settings) {
        return Ok(Box::new(CudaRunner::new(config, device, settings)?));
    }
    let runner = PortableRunner::new(config, device, settings)?;
    Ok(Box::new(runner))
}
