//! Runner of the CPU kernels: weights packed once after they change, a step in one call.

use asyncthink_model::{Decoder, ModelConfig, PackedDecoder, StepBatch};
use asyncthink_torch::{CPU_BLOCK_TOKENS, CpuKvCache, SampledRow, SamplingBatch};
use tch::{Device, Kind};

use super::model_runner::ModelRunner;
use crate::error::Result;
use crate::settings::EngineSettings;

/// Runs a [`PackedDecoder`] in f32 or bf16, whatever the decoder's own type is.
#[derive(Debug)]
pub(crate) struct CpuRunner {
    packed: PackedDecoder,
    is_packed: bool,
    cache: CpuKvCache,
    block_size: usize,
}

impl CpuRunner {
    /// Whether the kernels can run such an engine.
    pub(crate) fn supports(
        config: &ModelConfig,
        device: Device,
        settings: &EngineSettings,
    ) -> bool {
        device == Device::Cpu
            && settings.block_size > 0
            && settings.block_size.is_multiple_of(CPU_BLOCK_TOKENS)
            && PackedDecoder::supports(config, settings.compute())
    }

    pub(crate) fn new(config: &ModelConfig, settings: &EngineSettings) -> Result<Self> {
        Self::of_kind(config, settings.block_size, settings.compute())
    }

    fn of_kind(config: &ModelConfig, block_size: usize, kind: Kind) -> Result<Self> {
        let packed = PackedDecoder::new(config, kind)?;
        Ok(Self {
            cache: packed.cache(1, block_size)?,
            packed,
            is_packed: false,
            block_size,
        })
    }
}

impl ModelRunner for CpuRunner {
    fn block_bytes(&self) -> u64 {
        self.packed.token_bytes() * self.block_size as u64
    }

    fn allocate(&mut self, num_blocks: usize) -> Result<()> {
        self.cache = self.packed.cache(num_blocks, self.block_size)?;
        Ok(())
    }

    fn weights_changed(&mut self) {
        self.is_packed = false;
    }

    fn run(
        &mut self,
        decoder: &Decoder,
        batch: &StepBatch,
        sampling: &SamplingBatch,
    ) -> Result<Vec<SampledRow>> {
        if !self.is_packed {
            self.packed.pack(decoder)?;
            self.is_packed = true;
        }
        Ok(self.packed.step(&mut self.cache, batch, sampling)?)
    }
}
