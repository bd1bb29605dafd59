//! The decoder of the Llama and Qwen families: grouped-query attention, `SwiGLU`, `RMSNorm` before each block; with biases
//! and normalised queries and keys where the configuration has them.

mod adapted;
mod host_copy;

use std::path::Path;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::adapter_file::base_of;
use crate::adapters::Adapters;
use crate::attention::registry::default_backend;
use crate::attention::{Attention, DecodeRows};
use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layer::{DecoderEnds, DecoderLayer};
use crate::model_folder::ModelFolder;
use crate::positions::{Packing, Positions};
use crate::precision::Precision;
use crate::segments::Segments;
use crate::step_batch::StepBatch;
use crate::stream::draw_parameters;
use crate::weights;

/// A decoder with its parameters.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    kind: Kind,
    parameters: Vec<(String, Tensor)>,
    adapters: Option<Adapters>,
    attention: Arc<dyn Attention>,
    ends: DecoderEnds,
    layers: Vec<DecoderLayer>,
    positions: Positions,
}

impl Decoder {
    /// Draws a new model ([`draw_parameters`]).
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn init(config: &ModelConfig, device: Device, seed: u64) -> Result<Self> {
        Self::init_in(config, device, Precision::F32.compute(), seed)
    }

    /// Draws the model that [`Self::init`] draws, rounded to `kind`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn init_in(config: &ModelConfig, device: Device, kind: Kind, seed: u64) -> Result<Self> {
        let mut parameters = Vec::new();
        draw_parameters(config, seed, &mut |name, tensor| {
            let tensor = tensor.f_to_kind(kind)?.f_to_device(device)?;
            parameters.push((name.to_owned(), tensor));
            Ok(())
        })?;
        Self::assemble(config.clone(), device, kind, parameters, None)
    }

    /// Loads a Hugging Face model folder, converting every tensor to `kind`. Of a PEFT adapter folder the base model is
    /// loaded and the adapters are merged into it.
    ///
    /// # Errors
    /// When the configuration is not supported, or the weights are missing, misshaped or unreadable.
    pub fn load<'a>(
        folder: impl Into<ModelFolder<'a>>,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let folder = folder.into();
        if base_of(folder)?.is_some() {
            return Self::load_adapted(folder, device, kind)?.into_merged();
        }
        let config = ModelConfig::from_dir(folder)?;
        let parameters = weights::load(folder.dir(), &config, device, kind)?;
        Self::assemble(config, device, kind, parameters, None)
    }

    /// A model over parameters that exist, which it shares: one of each name that the configuration asks for, all of one
    /// kind on one device.
    ///
    /// # Errors
    /// When a parameter is missing or has another shape.
    pub fn from_parameters(
        config: &ModelConfig,
        mut parameters: Vec<(String, Tensor)>,
    ) -> Result<Self> {
        parameters.sort_by(|(a, _), (b, _)| a.cmp(b));
        let expected = config.parameter_shapes();
        let unfit = |what: &str| {
            Error::Config(format!("the parameters are not those of the model: {what}"))
        };
        if expected.len() != parameters.len() {
            return Err(unfit("there are more or fewer"));
        }
        for ((name, shape), (given, tensor)) in expected.iter().zip(&parameters) {
            if name != given || *shape != tensor.size() {
                return Err(unfit(name));
            }
        }
        let (device, kind) = parameters
            .first()
            .map_or((Device::Cpu, Precision::F32.master()), |(_, tensor)| {
                (tensor.device(), tensor.kind())
            });
        Self::assemble(config.clone(), device, kind, parameters, None)
    }

    /// Writes `config.json` and the weights into an existing folder: `model.safetensors`, or shards of at most 5 GB with an
    /// index; and `generation_config.json`, unless the folder has one. Of a model with adapters, these alone are written, as PEFT does.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_in_shards(dir, weights::MAX_SHARD_BYTES)
    }

    /// The same with another limit on the size of a file.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_in_shards(&self, dir: &Path, max_shard_bytes: usize) -> Result<()> {
        if let Some(adapters) = &self.adapters {
            weights::save_generation_config(dir, &self.config)?;
            return adapters.save(dir);
        }
        self.save_whole(dir, None, max_shard_bytes)
    }

    /// Writes the whole model with its weights as `kind`; those of adapters are added to them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_as(&self, dir: &Path, kind: Kind) -> Result<()> {
        let kind = Some(kind);
        if self.adapters.is_some() {
            return self
                .merged()?
                .save_whole(dir, kind, weights::MAX_SHARD_BYTES);
        }
        self.save_whole(dir, kind, weights::MAX_SHARD_BYTES)
    }

    fn save_whole(&self, dir: &Path, kind: Option<Kind>, max_shard_bytes: usize) -> Result<()> {
        let dtype = match kind.unwrap_or(self.kind) {
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            _ => "float32",
        };
        self.config.save(dir, dtype)?;
        weights::save_generation_config(dir, &self.config)?;
        weights::save(dir, &self.parameters, kind, max_shard_bytes)
    }

    fn assemble(
        config: ModelConfig,
        device: Device,
        kind: Kind,
        parameters: Vec<(String, Tensor)>,
        adapters: Option<Adapters>,
    ) -> Result<Self> {
        let find = |name: &str| {
            let index = parameters.partition_point(|(other, _)| other.as_str() < name);
            let found = parameters.get(index).filter(|(other, _)| other == name);
            found.map(|(_, tensor)| tensor.shallow_clone())
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| DecoderLayer::new(&config, index, adapters.as_ref(), &find))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            ends: DecoderEnds::new(&config, &find)?,
            positions: Positions::new(&config, device, kind)?,
            config,
            device,
            kind,
            parameters,
            adapters,
            attention: default_backend(),
            layers,
        })
    }

    /// The decoder with another attention backend in all layers.
    #[must_use]
    pub fn with_attention(mut self, attention: Arc<dyn Attention>) -> Self {
        self.layers = self
            .layers
            .into_iter()
            .map(|layer| layer.with_attention(Arc::clone(&attention)))
            .collect();
        self.attention = attention;
        self
    }

    /// The attention backend.
    pub fn attention(&self) -> &Arc<dyn Attention> {
        &self.attention
    }

    /// A decoder over the same weights with gradients of its own, for another thread: what one updates in place, the
    /// other sees.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn replica(&self) -> Result<Self> {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, tensor)| {
                (
                    name.clone(),
                    tensor.detach().set_requires_grad(tensor.requires_grad()),
                )
            })
            .collect();
        let adapters = self.adapters.as_ref().map(Adapters::replica);
        let replica = Self::assemble(
            self.config.clone(),
            self.device,
            self.kind,
            parameters,
            adapters,
        )?;
        Ok(replica.with_attention(Arc::clone(&self.attention)))
    }

    /// So many replicas ([`Self::replica`]).
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn replicas(&self, count: usize) -> Result<Vec<Self>> {
        (0..count).map(|_| self.replica()).collect()
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the parameters live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Type of the parameters.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Every parameter under its Hugging Face name, sorted by name; adapters are apart.
    pub fn named_parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// A parameter by its Hugging Face name, without a graph.
    pub(crate) fn parameter(&self, name: &str) -> Option<Tensor> {
        let found = self
            .parameters
            .binary_search_by(|(other, _)| other.as_str().cmp(name));
        found.ok().map(|index| self.parameters[index].1.detach())
    }

    /// The adapters, if the model has some.
    pub fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    /// What training changes: the adapters, or every parameter of a model without; sorted by name.
    pub fn trained_parameters(&self) -> &[(String, Tensor)] {
        match &self.adapters {
            Some(adapters) => adapters.named_parameters(),
            None => &self.parameters,
        }
    }

    /// Asks for gradients on what training changes, or for none.
    pub fn set_requires_grad(&mut self, requires_grad: bool) {
        if let Some(adapters) = &mut self.adapters {
            adapters.set_requires_grad(requires_grad);
        } else {
            for (_, tensor) in &mut self.parameters {
                *tensor = tensor.set_requires_grad(requires_grad);
            }
        }
    }

    /// Final hidden states, after the last norm, of a packed batch; differentiable.
    ///
    /// # Shapes
    /// `ids` i64 `[tokens]`, of as many tokens as `segments`. Returns `[tokens, hidden]` of the model's kind.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn hidden_packed(&self, ids: &Tensor, segments: &Segments) -> Result<Tensor> {
        let packing = self.packing(segments)?;
        let mut hidden = self.ends.embed(ids)?;
        for layer in &self.layers {
            hidden = layer.forward_packed(&hidden, &packing)?;
        }
        self.ends.norm(&hidden)
    }

    /// As [`Self::hidden_packed`] without a graph, by fused kernels where there are some.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn hidden_scored(&self, ids: &Tensor, segments: &Segments) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let packing = self.packing(segments)?;
        let mut hidden = self.ends.embed(ids)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &packing)?;
        }
        Ok(self.ends.normed(hidden)?.output)
    }

    /// What the layers need to know of the segments of a packed batch.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn packing(&self, segments: &Segments) -> Result<Packing> {
        self.positions.packing(segments)
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[DecoderLayer] {
        &self.layers
    }

    /// What comes before the first layer and after the last.
    pub fn ends(&self) -> &DecoderEnds {
        &self.ends
    }

    /// Feeds one batch of tokens to the cache and returns f32 logits `[samples, vocab]`.
    ///
    /// Runs without gradients.
    ///
    /// # Errors
    /// When the batch names a block that the cache does not have, or libtorch refuses an operation.
    pub fn step(&self, batch: &StepBatch, cache: &KvCache) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        batch.check(cache.num_blocks(), cache.block_size())?;
        cache.copy_blocks(&batch.block_copies)?;
        let on_device = |values: &[i64]| Tensor::from_slice(values).f_to_device(self.device);
        let rows = DecodeRows::new(batch, cache.block_size(), self.device)?;
        let rotary = self.positions.rotary_at(&rows.positions)?;
        let mut hidden = self.ends.embed(&on_device(&batch.ids)?)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward_decode(&hidden, &rotary, cache.layer(index), &rows)?;
        }
        let sample_rows: Vec<i64> = batch.sample_rows.iter().map(|&row| row.into()).collect();
        let hidden = hidden.f_index_select(0, &on_device(&sample_rows)?)?;
        self.lm_head(&self.ends.norm(&hidden)?)
    }

    /// Logits in f32 of hidden states: `[tokens, hidden]` to `[tokens, vocab]`. Callers bound `tokens` to a chunk.
    ///
    /// # Errors
    /// When libtorch refuses the operation.
    pub fn lm_head(&self, hidden: &Tensor) -> Result<Tensor> {
        self.ends.lm_head(hidden)
    }
}
