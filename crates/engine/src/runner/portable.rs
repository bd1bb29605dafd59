//! Runner of libtorch's own operations and the reference sampler: any device, and the reference of the others.

use asyncthink_model::{Decoder, KvCache, ModelConfig, StepBatch};
use asyncthink_torch::{ReferenceSampler, SampledRow, SamplingBatch};
use tch::{Device, Kind, Tensor};

use super::model_runner::ModelRunner;
use crate::error::{Error, Result};
use crate::settings::EngineSettings;

/// Blocks that the cache begins with.
const FIRST_BLOCKS: usize = 64;

/// Runs [`Decoder::step`]. Its cache grows with the blocks that are used.
#[derive(Debug)]
pub(crate) struct PortableRunner {
    config: ModelConfig,
    device: Device,
    block_size: usize,
    kind: Kind,
    max_blocks: usize,
    cache: KvCache,
    sampler: ReferenceSampler,
    logits: Vec<f32>,
}

impl PortableRunner {
    pub(crate) fn new(
        config: &ModelConfig,
        device: Device,
        settings: &EngineSettings,
    ) -> Result<Self> {
        let (kind, compute) = (settings.compute(), settings.precision.compute());
        if kind != compute {
            return Err(Error::Dtype {
                dtype: name_of(kind),
                compute: name_of(compute),
            });
        }
        Self::of_kind(config, device, settings.block_size, kind)
    }

    /// For decoders that compute in `kind`.
    pub(crate) fn of_kind(
        config: &ModelConfig,
        device: Device,
        block_size: usize,
        kind: Kind,
    ) -> Result<Self> {
        Ok(Self {
            config: config.clone(),
            device,
            block_size,
            kind,
            max_blocks: 0,
            cache: KvCache::new(config, 0, block_size, kind, device)?,
            sampler: ReferenceSampler::default(),
            logits: Vec::new(),
        })
    }

    /// Makes the cache large enough for the blocks of a batch, twice as large at the least, so that copies stay a small
    /// share of the work.
    fn make_room(&mut self, batch: &StepBatch) -> Result<()> {
        let needed = batch.min_num_blocks();
        let held = self.cache.num_blocks();
        if needed <= held {
            return Ok(());
        }
        let wanted = needed.max(2 * held).max(FIRST_BLOCKS);
        Ok(self.cache.grow(wanted.min(self.max_blocks).max(needed))?)
    }

    /// Takes logits `[samples, vocab]` to the host; returns the size of the vocabulary.
    fn fetch(&mut self, logits: &Tensor) -> Result<usize> {
        let num_values = logits.numel();
        self.logits.resize(num_values, 0.0);
        logits
            .f_to_device(Device::Cpu)?
            .f_contiguous()?
            .f_copy_data(&mut self.logits, num_values)?;
        Ok(usize::try_from(logits.size()[1]).unwrap_or(0))
    }
}

impl ModelRunner for PortableRunner {
    fn block_bytes(&self) -> u64 {
        KvCache::block_bytes(&self.config, self.block_size, self.kind)
    }

    fn allocate(&mut self, num_blocks: usize) -> Result<()> {
        self.max_blocks = num_blocks;
        self.cache = KvCache::new(&self.config, 0, self.block_size, self.kind, self.device)?;
        Ok(())
    }

    fn weights_changed(&mut self) {}

    fn run(
        &mut self,
        decoder: &Decoder,
        batch: &StepBatch,
        sampling: &SamplingBatch,
    ) -> Result<Vec<SampledRow>> {
        self.make_room(batch)?;
        let logits = decoder.step(batch, &self.cache)?;
        let vocab = self.fetch(&logits)?;
        let rows = self.logits.chunks_exact(vocab.max(1)).zip(sampling.iter());
        let sampler = &mut self.sampler;
        let sampled = rows.map(|(logits, (row, banned))| sampler.sample(logits, row, banned));
        Ok(sampled.collect())
    }
}

/// Name of a type in recipes.
fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "f32",
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        Kind::Double => "f64",
        _ => "another type",
    }
}
