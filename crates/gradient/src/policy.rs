//! The model that a stage trains, as its ranks hold it.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use asyncthink_data::Tokenizer;
use asyncthink_distributed::{
    AdamW, AdamWSettings, Purpose, Ranks, ShardedDecoder, Sharding, StateOptions, sums_of,
};
use asyncthink_model::{
    Decoder, LoraConfig, ModelConfig, ModelFolder, Parallelism, Precision, PretrainedModel,
    VisitParameter, draw_parameters, fitting_tokenizer, read_parameters,
};
use asyncthink_recipe::Shard;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::weights::Weights;

/// Settings for loading and sharding a model.
#[derive(Clone, Debug)]
pub struct PolicySettings {
    /// Number types.
    pub precision: Precision,
    /// Whether the optimizer keeps its state in host memory.
    pub offloads_optimizer: bool,
    /// Sharding across ranks.
    pub shard: Shard,
    /// With sharded weights: micro-batches that a gathered layer is used for.
    pub micro_batches_per_gather: usize,
    /// Adapters to train in place of the model's own weights.
    pub lora: Option<LoraConfig>,
    /// Folder of the base model of adapter folders, in place of what they name.
    pub adapter_base: Option<PathBuf>,
    /// Seed of new weights and adapters.
    pub seed: u64,
}

impl PolicySettings {
    /// A model's folder, with the base model that was given for it.
    pub fn folder<'a>(&'a self, dir: &'a Path) -> ModelFolder<'a> {
        ModelFolder::new(dir).with_base(self.adapter_base.as_deref())
    }

    /// Weight sharding; `None` if every rank holds all weights.
    fn sharding(&self, ranks: &Arc<Ranks>, device: Device) -> Option<Sharding> {
        (self.shard == Shard::Full).then(|| Sharding {
            ranks: Arc::clone(ranks),
            device,
            micro_batches_per_gather: self.micro_batches_per_gather,
            kind: self.precision.compute(),
        })
    }
}

/// Where a model's weights came from, for its f32 values to be read once more.
#[derive(Debug)]
enum Source {
    Folder { dir: PathBuf, base: Option<PathBuf> },
    Seed(u64),
}

impl Source {
    fn of(folder: ModelFolder<'_>) -> Self {
        Self::Folder {
            dir: folder.dir().to_owned(),
            base: folder.given_base().map(Path::to_owned),
        }
    }

    fn read(
        &self,
        config: &ModelConfig,
        visit: VisitParameter<'_>,
    ) -> asyncthink_model::Result<()> {
        match self {
            Self::Folder { dir, base } => {
                let folder = ModelFolder::new(dir).with_base(base.as_deref());
                read_parameters(folder, Device::Cpu, Precision::F32.master(), visit)
            }
            Self::Seed(seed) => draw_parameters(config, *seed, visit),
        }
    }
}

/// Weights under training, and the tokenizer that belongs to them.
#[derive(Debug)]
pub struct PolicyModel {
    weights: Weights,
    /// Tokenizer of the model.
    pub tokenizer: Tokenizer,
    ranks: Arc<Ranks>,
    source: Source,
    offloads_optimizer: bool,
    /// What episodes are sampled from where it is not the trained decoder itself: that with its adapters added, which is kept
    /// from step to step, or all of a decoder in parts, which is let go.
    sampler: Option<Decoder>,
}

/// A decoder that is whole for a while.
#[derive(Debug)]
pub enum WholeDecoder<'a> {
    /// The model's own.
    Own(&'a Decoder),
    /// Gathered from all ranks.
    Gathered(Box<Decoder>),
}

impl std::ops::Deref for WholeDecoder<'_> {
    type Target = Decoder;

    fn deref(&self) -> &Decoder {
        match self {
            Self::Own(decoder) => decoder,
            Self::Gathered(decoder) => decoder,
        }
    }
}

/// A decoder that is scored with and not trained.
///
/// # Errors
/// When the folder cannot be read, or the memory cannot be had.
pub fn load_reference(
    dir: &Path,
    settings: &PolicySettings,
    ranks: &Arc<Ranks>,
    device: Device,
) -> Result<Weights> {
    let folder = settings.folder(dir);
    Ok(match settings.sharding(ranks, device) {
        Some(sharding) => {
            let decoder = ShardedDecoder::load(folder, sharding, Purpose::Reference)?;
            Weights::Sharded(Rc::new(decoder))
        }
        None => Weights::Whole(Box::new(Decoder::load(
            folder,
            device,
            settings.precision.compute(),
        )?)),
    })
}

impl PolicyModel {
    /// Loads the model of a folder: a checkpoint, or any Hugging Face folder.
    ///
    /// # Errors
    /// When weights or tokenizer cannot be read or do not fit together, or the folder's adapters are not those of the settings.
    pub fn load(
        dir: &Path,
        settings: &PolicySettings,
        ranks: &Arc<Ranks>,
        device: Device,
    ) -> Result<Self> {
        let folder = settings.folder(dir);
        if let Some(sharding) = settings.sharding(ranks, device) {
            let tokenizer = fitting_tokenizer(folder)?;
            let decoder = match &settings.lora {
                Some(lora) => {
                    let (lora, seed) = (lora.clone(), settings.seed);
                    ShardedDecoder::load_with_adapters(folder, sharding, lora, seed)?
                }
                None => ShardedDecoder::load(folder, sharding, Purpose::Training)?,
            };
            return Ok(Self::sharded(
                decoder,
                tokenizer,
                ranks,
                Source::of(folder),
                settings,
            ));
        }
        let precision = settings.precision;
        let model = match &settings.lora {
            None => PretrainedModel::load(folder, device, precision)?,
            Some(lora) => {
                let (lora, seed) = (lora.clone(), settings.seed);
                PretrainedModel::load_with_adapters(folder, device, precision, lora, seed)?
            }
        };
        Ok(Self::whole(model, ranks, Source::of(folder), settings))
    }

    /// Draws random weights for a tokenizer.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn init(
        config: &ModelConfig,
        tokenizer: Tokenizer,
        settings: &PolicySettings,
        ranks: &Arc<Ranks>,
        device: Device,
    ) -> Result<Self> {
        if let Some(sharding) = settings.sharding(ranks, device) {
            let decoder = ShardedDecoder::init(config, settings.seed, sharding)?;
            let source = Source::Seed(settings.seed);
            return Ok(Self::sharded(decoder, tokenizer, ranks, source, settings));
        }
        let (precision, seed) = (settings.precision, settings.seed);
        let model = PretrainedModel::init(config, tokenizer, device, precision, seed)?;
        Ok(Self::whole(model, ranks, Source::Seed(seed), settings))
    }

    fn whole(
        files: PretrainedModel,
        ranks: &Arc<Ranks>,
        source: Source,
        settings: &PolicySettings,
    ) -> Self {
        let PretrainedModel { decoder, tokenizer } = files;
        Self {
            weights: Weights::Whole(Box::new(decoder)),
            tokenizer,
            ranks: Arc::clone(ranks),
            source,
            offloads_optimizer: settings.offloads_optimizer,
            sampler: None,
        }
    }

    fn sharded(
        decoder: ShardedDecoder,
        tokenizer: Tokenizer,
        ranks: &Arc<Ranks>,
        source: Source,
        settings: &PolicySettings,
    ) -> Self {
        Self {
            weights: Weights::Sharded(Rc::new(decoder)),
            tokenizer,
            ranks: Arc::clone(ranks),
            source,
            offloads_optimizer: settings.offloads_optimizer,
            sampler: None,
        }
    }

    /// An optimizer over what is trained, which gets gradients from now on.
    ///
    /// # Errors
    /// When libtorch refuses an operation, the memory cannot be had, or a rank is lost.
    pub fn new_optimizer(&mut self, settings: AdamWSettings, bucket_bytes: usize) -> Result<AdamW> {
        let ranks = Arc::clone(&self.ranks);
        let config = self.weights.config().clone();
        let source = &self.source;
        let mut read = |visit: VisitParameter<'_>| source.read(&config, visit);
        let mut state = StateOptions {
            on_host: self.offloads_optimizer,
            read: None,
        };
        match &mut self.weights {
            Weights::Whole(decoder) => {
                decoder.set_requires_grad(true);
                // Adapters are f32 themselves.
                if decoder.adapters().is_none() && decoder.kind() != Kind::Float {
                    state.read = Some(&mut read);
                }
                Ok(AdamW::with_state(
                    decoder.trained_parameters(),
                    settings,
                    ranks,
                    bucket_bytes,
                    state,
                )?)
            }
            Weights::Sharded(decoder) => {
                if let Some(adapters) = decoder.adapters() {
                    let parameters = adapters.named_parameters();
                    return Ok(AdamW::with_state(
                        parameters,
                        settings,
                        ranks,
                        bucket_bytes,
                        state,
                    )?);
                }
                if decoder.kind() != Kind::Float {
                    state.read = Some(&mut read);
                }
                Ok(AdamW::of_sharded(decoder, settings, ranks, state)?)
            }
        }
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    /// How many values training changes.
    pub fn num_trained(&self) -> i64 {
        match &self.weights {
            Weights::Whole(decoder) => num_values(decoder.trained_parameters()),
            Weights::Sharded(decoder) => match decoder.adapters() {
                Some(adapters) => num_values(adapters.named_parameters()),
                None => decoder.config().num_parameters(),
            },
        }
    }

    /// Name of the first trained parameter of which this rank holds a value that is not finite. No collective.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn first_non_finite(&self) -> Result<Option<String>> {
        let decoder = match &self.weights {
            Weights::Whole(decoder) => decoder,
            Weights::Sharded(decoder) => return Ok(decoder.first_non_finite()?),
        };
        for (name, parameter) in decoder.trained_parameters() {
            if parameter.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// What tells the weights that training begins with from others.
    ///
    /// # Errors
    /// When libtorch refuses an operation, the memory cannot be had, or a rank is lost.
    pub fn digest(&self) -> Result<Cow<'_, str>> {
        Ok(match &self.weights {
            Weights::Whole(decoder) => Cow::Owned(sums_of(decoder.trained_parameters())?),
            Weights::Sharded(decoder) => Cow::Borrowed(decoder.digest()),
        })
    }

    /// Brings what episodes are sampled from up to date with what training changed. All ranks do it together.
    ///
    /// # Errors
    /// When libtorch refuses an operation, the memory cannot be had, or a rank is lost.
    pub fn begin_sampling(&mut self) -> Result<()> {
        match (&self.weights, &mut self.sampler) {
            (Weights::Sharded(decoder), sampler) => *sampler = Some(decoder.gather()?),
            (Weights::Whole(decoder), Some(merged)) => decoder.refresh_merged(merged)?,
            // Sampling on a GPU reads base and adapters where they are: a second copy of the base may not fit.
            (Weights::Whole(decoder), None)
                if decoder.adapters().is_some() && decoder.device() == Device::Cpu =>
            {
                self.sampler = Some(decoder.merged()?);
            }
            (Weights::Whole(_), None) => {}
        }
        Ok(())
    }

    /// The decoder to sample from, between [`Self::begin_sampling`] and [`Self::end_sampling`]: the trained one itself; with adapters,
    /// a copy that has them added and is as fast as a model without.
    ///
    /// # Errors
    /// When libtorch refuses an operation, the memory cannot be had, or a rank is lost.
    pub fn sampler(&self) -> Result<&Decoder> {
        match (&self.sampler, &self.weights) {
            (Some(sampler), _) => Ok(sampler),
            (None, Weights::Whole(decoder)) => Ok(decoder),
            (None, Weights::Sharded(_)) => {
                Err(Error::stage("sampling", "the weights are not gathered"))
            }
        }
    }

    /// The trained decoder while it is sampled from, for scores as the trainer computes them.
    ///
    /// # Errors
    /// When libtorch refuses an operation, the memory cannot be had, or a rank is lost.
    pub fn scorer(&self) -> Result<&Decoder> {
        match &self.weights {
            Weights::Whole(decoder) => Ok(decoder),
            Weights::Sharded(_) => self.sampler(),
        }
    }

    /// Lets go what was gathered to sample from.
    pub fn end_sampling(&mut self) {
        if matches!(self.weights, Weights::Sharded(_)) {
            self.sampler = None;
        }
    }

    /// The whole decoder on every rank. All ranks ask together.
    ///
    /// # Errors
    /// When libtorch refuses an operation, the memory cannot be had, or a rank is lost.
    pub fn gathered(&self) -> Result<WholeDecoder<'_>> {
        Ok(match &self.weights {
            Weights::Whole(decoder) => WholeDecoder::Own(decoder),
            Weights::Sharded(decoder) => WholeDecoder::Gathered(Box::new(decoder.gather()?)),
        })
    }

    /// What the first rank writes of the model; `None` on the others. All ranks ask together.
    ///
    /// These are the f32 weights, whatever the model computes in: `optimizer` has them where the model has not. With `is_copy`
    /// the weights that training changes are host copies, and training may go on while they are written; without, they may
    /// be the model's own.
    ///
    /// # Errors
    /// When the memory cannot be had, or a rank is lost.
    pub fn snapshot(&self, optimizer: &AdamW, is_copy: bool) -> Result<Option<PretrainedModel>> {
        let decoder = match &self.weights {
            _ if optimizer.has_master() => {
                optimizer.master_on_first_rank(self.config(), is_copy)?
            }
            Weights::Sharded(decoder) => decoder.own_on_first_rank()?,
            Weights::Whole(_) if !self.ranks.is_first() => None,
            Weights::Whole(decoder) if is_copy => Some(decoder.host_copy()?),
            Weights::Whole(decoder) => Some(decoder.replica()?),
        };
        Ok(decoder.map(|decoder| PretrainedModel {
            decoder,
            tokenizer: self.tokenizer.clone(),
        }))
    }

    /// Thread parallelism of a batch.
    pub fn parallelism(&self) -> Parallelism {
        match &self.weights {
            Weights::Whole(decoder) => Parallelism::for_decoder(decoder),
            Weights::Sharded(_) => Parallelism::SINGLE,
        }
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        match &self.weights {
            Weights::Whole(decoder) => decoder.device(),
            Weights::Sharded(decoder) => decoder.device(),
        }
    }
}

fn num_values(parameters: &[(String, Tensor)]) -> i64 {
    let sizes = parameters.iter().map(|(_, tensor)| tensor.size());
    sizes.map(|size| size.iter().product::<i64>()).sum()
}
