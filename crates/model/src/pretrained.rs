//! A Hugging Face folder: decoder and tokenizer together.

use std::path::{Path, PathBuf};

use asyncthink_data::Tokenizer;
use tch::{Device, Kind};

use crate::adapter_file::base_of;
use crate::adapters::Adapters;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::generator::seeded;
use crate::lora_config::LoraConfig;
use crate::model_folder::ModelFolder;
use crate::precision::Precision;

/// A decoder and the tokenizer that belongs to it.
#[derive(Debug)]
pub struct PretrainedModel {
    /// The decoder.
    pub decoder: Decoder,
    /// Tokenizer of the model.
    pub tokenizer: Tokenizer,
}

impl PretrainedModel {
    /// Loads a Hugging Face folder; adapters of a PEFT folder are merged into their base model.
    ///
    /// # Errors
    /// When weights or tokenizer cannot be read or do not fit together.
    pub fn load<'a>(
        folder: impl Into<ModelFolder<'a>>,
        device: Device,
        precision: Precision,
    ) -> Result<Self> {
        let folder = folder.into();
        let tokenizer = fitting_tokenizer(folder)?;
        let decoder = Decoder::load(folder, device, precision.compute())?;
        Ok(Self { decoder, tokenizer })
    }

    /// Loads a folder to train adapters on it: those of a PEFT folder, or new ones drawn with `seed`.
    ///
    /// # Errors
    /// When weights or tokenizer cannot be read or do not fit together, or the folder's adapters are not `wanted`.
    pub fn load_with_adapters<'a>(
        folder: impl Into<ModelFolder<'a>>,
        device: Device,
        precision: Precision,
        wanted: LoraConfig,
        seed: u64,
    ) -> Result<Self> {
        let folder = folder.into();
        let tokenizer = fitting_tokenizer(folder)?;
        let decoder = if base_of(folder)?.is_some() {
            let decoder = Decoder::load_adapted(folder, device, precision.compute())?;
            check_adapters(folder.dir(), decoder.adapters(), &wanted)?;
            decoder
        } else {
            // Checkpoints refer to it, from wherever they are used.
            let base = fs_err::canonicalize(folder.dir())?;
            Decoder::load(folder, device, precision.compute())?
                .with_new_adapters(wanted, &base, seed)?
        };
        Ok(Self { decoder, tokenizer })
    }

    /// Draws random weights for a tokenizer.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn init(
        config: &ModelConfig,
        tokenizer: Tokenizer,
        device: Device,
        precision: Precision,
        seed: u64,
    ) -> Result<Self> {
        let decoder = Decoder::init_in(config, device, precision.compute(), seed)?;
        Ok(Self { decoder, tokenizer })
    }

    /// Writes weights, configuration and tokenizer; of a model with adapters these in place of the weights.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.decoder.save(dir)?;
        Ok(self.tokenizer.save(dir)?)
    }

    /// Writes the whole model with its weights as `kind`, those of adapters added to them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_as(&self, dir: &Path, kind: Kind) -> Result<()> {
        self.decoder.save_as(dir, kind)?;
        Ok(self.tokenizer.save(dir)?)
    }

    /// Writes the model with its adapters added, as a folder of its own.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_merged(&self, dir: &Path) -> Result<()> {
        self.decoder.merged()?.save(dir)?;
        Ok(self.tokenizer.save(dir)?)
    }
}

/// The tokenizer of a model folder, whose ids the model knows.
///
/// # Errors
/// When tokenizer or configuration cannot be read, or the tokenizer has more ids than the model.
pub fn fitting_tokenizer<'a>(folder: impl Into<ModelFolder<'a>>) -> Result<Tokenizer> {
    let folder = folder.into();
    let dir = folder.dir();
    let tokenizer = Tokenizer::from_dir(dir)?;
    let vocab_size = ModelConfig::from_dir(folder)?.vocab_size;
    // Found out here, or as a failed look-up in the middle of a step.
    if usize::try_from(vocab_size).is_ok_and(|rows| tokenizer.vocab_size() > rows) {
        return Err(Error::VocabularyTooLarge {
            dir: dir.to_owned(),
            num_ids: tokenizer.vocab_size(),
            vocab_size,
        });
    }
    Ok(tokenizer)
}

/// Adapters to train on a base model that is held elsewhere: those of a PEFT folder, or new ones drawn with `seed`. Also gives
/// the folder of the base.
///
/// # Errors
/// As [`PretrainedModel::load_with_adapters`].
pub fn read_adapters<'a>(
    folder: impl Into<ModelFolder<'a>>,
    device: Device,
    wanted: LoraConfig,
    seed: u64,
) -> Result<(Adapters, PathBuf)> {
    let folder = folder.into();
    let (mut adapters, base) = if let Some(base) = base_of(folder)? {
        let adapters = Adapters::load(folder, &ModelConfig::from_dir(&base)?, device)?;
        check_adapters(folder.dir(), Some(&adapters), &wanted)?;
        (adapters, base)
    } else {
        let base = fs_err::canonicalize(folder.dir())?;
        let config = ModelConfig::from_dir(&base)?;
        let draw = || Adapters::draw(wanted, base.clone(), &config, device);
        (seeded(seed, draw)?, base)
    };
    adapters.set_requires_grad(true);
    Ok((adapters, base))
}

fn check_adapters(dir: &Path, adapters: Option<&Adapters>, wanted: &LoraConfig) -> Result<()> {
    let found = adapters.map(Adapters::config);
    if found.is_none_or(|found| found == wanted) {
        return Ok(());
    }
    let describe = |config: &LoraConfig| {
        let names: Vec<&str> = config.targets.iter().map(|target| target.name()).collect();
        format!(
            "rank {}, alpha {}{}, {}",
            config.rank,
            config.alpha,
            if config.use_rslora { ", rslora" } else { "" },
            names.join(" ")
        ) + if config.without.is_empty() {
            ""
        } else {
            ", not in every layer"
        }
    };
    Err(Error::OtherAdapters {
        dir: dir.to_owned(),
        found: found.map(describe).unwrap_or_default(),
        wanted: describe(wanted),
    })
}
