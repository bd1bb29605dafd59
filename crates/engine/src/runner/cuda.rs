//! Runner of the CUDA kernels.

use asyncthink_model::{Decoder, FusedDecoder, ModelConfig, StepBatch};
use asyncthink_torch::{Kernels, SampledRow, SamplingBatch};
use tch::Device;

use crate::error::Result;
use crate::settings::EngineSettings;

/// Runs a [`FusedDecoder`] in f32 or bf16, whatever the decoder's own type is.
#[derive(Debug)]
pub(crate) struct CudaRunner(FusedDecoder);

impl CudaRunner {
    /// Whether the kernels can run such an engine; not where the program was built without nvcc.
    pub(crate) fn supports(
        config: &ModelConfig,
        device: Device,
        settings: &EngineSettings,
    ) -> bool {
        FusedDecoder::supports(config, settings.compute(), settings.block_size)
            && Kernels::open(device).is_ok()
    }

    pub(crate) fn new(
        config: &ModelConfig,
        device: Device,
        settings: &EngineSettings,
    ) -> Result<Self> {
        let kernels = Kernels::open(device).map_err(asyncthink_model::Error::from)?;
        let decoder = FusedDecoder::new(kernels, config, settings.compute(), settings.block_size)?;
        Ok(Self(decoder.with_graphs(settings.cuda_graphs)))
    }
}

impl super::model_runner::ModelRunner for CudaRunner {
    fn block_bytes(&self) -> u64 {
        self.0.block_bytes()
    }

    fn allocate(&mut self, num_blocks: usize) -> Result<()> {
        Ok(self.0.allocate(num_blocks)?)
    }

    fn weights_changed(&mut self) {
        self.0.weights_changed();
    }

    fn run(
        &mut self,
        decoder: &Decoder,
        batch: &StepBatch,
        sampling: &SamplingBatch,
    ) -> Result<Vec<SampledRow>> {
        Ok(self.0.step(decoder, batch, sampling)?)
    }
}
