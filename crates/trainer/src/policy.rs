//! The model that a stage trains, as its ranks hold it.

use std::borrow::Cow;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use asyncthink_data::{Stream, Tokenizer, derive_seed};
use asyncthink_distributed::{
    AdamW, AdamWSettings, Purpose, Ranks, ShardedDecoder, Sharding, sums_of,
};
use asyncthink_gradient::Weights;
use asyncthink_model::{Decoder, ModelConfig, Parallelism, PretrainedModel, fitting_tokenizer};
use asyncthink_recipe::{ModelSection, Shard};
use tch::Device;

use crate::error::{Error, Result};
use crate::models::{load_for_sft, load_to_train, new_config, sft_tokenizer};
use crate::settings::RunSettings;

/// Weights under training, and the tokenizer that belongs to them.
#[derive(Debug)]
pub(crate) struct PolicyModel {
    weights: Weights,
    pub(crate) tokenizer: Tokenizer,
    ranks: Arc<Ranks>,
    /// What episodes are sampled from where it is not the trained decoder itself: that with its adapters added, which is kept
    /// from step to step, or all of a decoder in parts, which is let go.
    sampler: Option<Decoder>,
}

/// A decoder that is whole for a while.
pub(crate) enum WholeDecoder<'a> {
    Own(&'a Decoder),
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

/// How the ranks hold weights; `None` if each holds all of them.
fn sharding(settings: &RunSettings, ranks: &Arc<Ranks>, device: Device) -> Option<Sharding> {
    (settings.distributed.shard == Shard::Full).then(|| Sharding {
        ranks: Arc::clone(ranks),
        device,
        micro_batches_per_gather: settings.distributed.micro_batches_per_gather,
    })
}

/// A decoder that is scored with and not trained.
pub(crate) fn load_reference(
    dir: &Path,
    settings: &RunSettings,
    ranks: &Arc<Ranks>,
    device: Device,
) -> Result<Weights> {
    Ok(match sharding(settings, ranks, device) {
        Some(sharding) => {
            let decoder = ShardedDecoder::load(dir, sharding, Purpose::Reference)?;
            Weights::Sharded(Rc::new(decoder))
        }
        None => Weights::Whole(Box::new(Decoder::load(
            dir,
            device,
            settings.precision.master(),
        )?)),
    })
}

impl PolicyModel {
    /// The model of a folder: a checkpoint, or what another stage or somebody else left.
    pub(crate) fn load(
        dir: &Path,
        settings: &RunSettings,
        ranks: &Arc<Ranks>,
        device: Device,
    ) -> Result<Self> {
        let Some(sharding) = sharding(settings, ranks, device) else {
            return Ok(Self::whole(load_to_train(dir, settings, device)?, ranks));
        };
        let tokenizer = fitting_tokenizer(dir)?;
        let decoder = ShardedDecoder::load(dir, sharding, Purpose::Training)?;
        Ok(Self::sharded(decoder, tokenizer, ranks))
    }

    /// What `sft` starts from: the recipe's model folder, or random weights.
    pub(crate) fn for_sft(
        settings: &RunSettings,
        ranks: &Arc<Ranks>,
        device: Device,
    ) -> Result<Self> {
        let init = match &settings.model {
            ModelSection::Path(dir) => return Self::load(dir, settings, ranks, device),
            ModelSection::Init(init) => init,
        };
        let Some(sharding) = sharding(settings, ranks, device) else {
            return Ok(Self::whole(load_for_sft(settings, device)?, ranks));
        };
        let tokenizer = sft_tokenizer(settings)?;
        let seed = derive_seed(settings.seed, Stream::Initialisation, 0, 0);
        let decoder = ShardedDecoder::init(&new_config(init, &tokenizer)?, seed, sharding)?;
        Ok(Self::sharded(decoder, tokenizer, ranks))
    }

    fn whole(files: PretrainedModel, ranks: &Arc<Ranks>) -> Self {
        let PretrainedModel { decoder, tokenizer } = files;
        Self {
            weights: Weights::Whole(Box::new(decoder)),
            tokenizer,
            ranks: Arc::clone(ranks),
            sampler: None,
        }
    }

    fn sharded(decoder: ShardedDecoder, tokenizer: Tokenizer, ranks: &Arc<Ranks>) -> Self {
        Self {
            weights: Weights::Sharded(Rc::new(decoder)),
            tokenizer,
            ranks: Arc::clone(ranks),
            sampler: None,
        }
    }

    /// An optimizer over what is trained, which gets gradients from now on.
    pub(crate) fn new_optimizer(
        &mut self,
        settings: AdamWSettings,
        bucket_bytes: usize,
    ) -> Result<AdamW> {
        let ranks = Arc::clone(&self.ranks);
        match &mut self.weights {
            Weights::Whole(decoder) => {
                decoder.set_requires_grad(true);
                Ok(AdamW::new(
                    decoder.trained_parameters(),
                    settings,
                    ranks,
                    bucket_bytes,
                )?)
            }
            Weights::Sharded(decoder) => Ok(AdamW::of_sharded(decoder, settings, ranks)?),
        }
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    /// How many values training changes.
    pub(crate) fn num_trained(&self) -> i64 {
        match &self.weights {
            Weights::Whole(decoder) => {
                let trained = decoder.trained_parameters().iter();
                trained
                    .map(|(_, tensor)| tensor.size().iter().product::<i64>())
                    .sum()
            }
            Weights::Sharded(decoder) => decoder.config().num_parameters(),
        }
    }

    /// Whether every trained value is a number; the same answer on all ranks, which all ask.
    pub(crate) fn is_finite(&self) -> Result<bool> {
        let decoder = match &self.weights {
            Weights::Whole(decoder) => decoder,
            Weights::Sharded(decoder) => return Ok(decoder.is_finite()?),
        };
        for (_, parameter) in decoder.trained_parameters() {
            if parameter.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What tells the weights that training begins with from others.
    pub(crate) fn digest(&self) -> Result<Cow<'_, str>> {
        Ok(match &self.weights {
            Weights::Whole(decoder) => Cow::Owned(sums_of(decoder.trained_parameters())?),
            Weights::Sharded(decoder) => Cow::Borrowed(decoder.digest()),
        })
    }

    /// Brings what episodes are sampled from up to date with what training changed. All ranks do it together.
    pub(crate) fn begin_sampling(&mut self) -> Result<()> {
        match (&self.weights, &mut self.sampler) {
            (Weights::Sharded(decoder), sampler) => *sampler = Some(decoder.gather()?),
            (Weights::Whole(decoder), Some(merged)) => decoder.refresh_merged(merged)?,
            (Weights::Whole(decoder), None) if decoder.adapters().is_some() => {
                self.sampler = Some(decoder.merged()?);
            }
            (Weights::Whole(_), None) => {}
        }
        Ok(())
    }

    /// The decoder to sample from, between [`Self::begin_sampling`] and [`Self::end_sampling`]: the trained one itself; with adapters,
    /// a copy that has them added and is as fast as a model without.
    pub(crate) fn sampler(&self) -> Result<&Decoder> {
        match (&self.sampler, &self.weights) {
            (Some(sampler), _) => Ok(sampler),
            (None, Weights::Whole(decoder)) => Ok(decoder),
            (None, Weights::Sharded(_)) => {
                Err(Error::stage("sampling", "the weights are not gathered"))
            }
        }
    }

    /// The trained decoder while it is sampled from, for scores as the trainer computes them.
    pub(crate) fn scorer(&self) -> Result<&Decoder> {
        match &self.weights {
            Weights::Whole(decoder) => Ok(decoder),
            Weights::Sharded(_) => self.sampler(),
        }
    }

    /// Lets go what was gathered to sample from.
    pub(crate) fn end_sampling(&mut self) {
        if matches!(self.weights, Weights::Sharded(_)) {
            self.sampler = None;
        }
    }

    /// The whole decoder on every rank. All ranks ask together.
    pub(crate) fn gathered(&self) -> Result<WholeDecoder<'_>> {
        Ok(match &self.weights {
            Weights::Whole(decoder) => WholeDecoder::Own(decoder),
            Weights::Sharded(decoder) => WholeDecoder::Gathered(Box::new(decoder.gather()?)),
        })
    }

    /// What the first rank writes of the model; `None` on the others. All ranks ask together.
    ///
    /// With `is_copy` the weights that training changes are host copies, and training may go on while they are written;
    /// without, they may be the model's own.
    ///
    /// # Errors
    /// When the memory cannot be had, or a rank is lost.
    pub(crate) fn snapshot(&self, is_copy: bool) -> Result<Option<PretrainedModel>> {
        let decoder = match &self.weights {
            Weights::Sharded(decoder) => decoder.gather_on_first_rank()?,
            Weights::Whole(_) if !self.ranks.is_first() => None,
            Weights::Whole(decoder) if is_copy => Some(decoder.host_copy()?),
            Weights::Whole(decoder) => Some(decoder.replica()?),
        };
        Ok(decoder.map(|decoder| PretrainedModel {
            decoder,
            tokenizer: self.tokenizer.clone(),
        }))
    }

    /// How threads work on its batches.
    pub(crate) fn parallelism(&self) -> Parallelism {
        match &self.weights {
            Weights::Whole(decoder) => Parallelism::for_decoder(decoder),
            Weights::Sharded(_) => Parallelism::SINGLE,
        }
    }

    /// Where the weights are.
    pub(crate) fn device(&self) -> Device {
        match &self.weights {
            Weights::Whole(decoder) => decoder.device(),
            Weights::Sharded(decoder) => decoder.device(),
        }
    }
}
