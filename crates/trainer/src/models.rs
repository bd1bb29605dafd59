//! The model and tokenizer that a stage starts from.

use std::path::{Path, PathBuf};

use asyncthink_data::Tokenizer;
use asyncthink_model::{Decoder, ModelConfig, ModelSizes};
use asyncthink_recipe::{ModelInit, ModelSection, Recipe, Stage};
use asyncthink_torch::{
    DeviceSpec, Parallelism, keep_freed_memory, open_device, set_num_threads, set_parallelism,
};
use tch::{Device, Kind};

use crate::error::{Error, Result};
use crate::layout::RunLayout;
use crate::streams::{Stream, derive_seed};

/// Below this many parameters, threads work on parts of the batch instead of sharing every operation.
const SMALL_MODEL_PARAMETERS: i64 = 50_000_000;

/// A decoder and the tokenizer that belongs to it.
#[derive(Debug)]
pub struct ModelFiles {
    /// The decoder.
    pub decoder: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

/// Opens the recipe's device and sets the number of threads. To be called before any other use of libtorch.
///
/// # Errors
/// When the device is not there, or threads already run in another number.
pub fn open_recipe_device(recipe: &Recipe) -> Result<Device> {
    let spec: DeviceSpec = recipe.device.to_string().parse()?;
    let device = open_device(&spec)?;
    set_num_threads(recipe.num_threads)?;
    keep_freed_memory();
    Ok(device)
}

impl ModelFiles {
    /// Loads a Hugging Face folder in f32.
    ///
    /// # Errors
    /// When weights or tokenizer cannot be read or do not fit together.
    pub fn load(dir: &Path, device: Device) -> Result<Self> {
        let tokenizer = Tokenizer::from_dir(dir)?;
        let vocab_size = ModelConfig::from_dir(dir)?.vocab_size;
        // Found out here, or as a failed look-up in the middle of a step.
        if usize::try_from(vocab_size).is_ok_and(|rows| tokenizer.vocab_size() > rows) {
            return Err(Error::VocabularyTooLarge {
                dir: dir.to_owned(),
                num_ids: tokenizer.vocab_size(),
                vocab_size,
            });
        }
        let decoder = Decoder::load(dir, device, Kind::Float)?;
        Ok(Self::new(decoder, tokenizer))
    }

    /// Also puts the process's threads to work as suits the model.
    fn new(decoder: Decoder, tokenizer: Tokenizer) -> Self {
        let is_small = decoder.config().num_parameters() < SMALL_MODEL_PARAMETERS;
        set_parallelism(if is_small && decoder.device() == Device::Cpu {
            Parallelism::AcrossBatch
        } else {
            Parallelism::WithinOperations
        });
        Self { decoder, tokenizer }
    }

    /// What `sft` starts from: the recipe's model folder, or random weights for the tokenizer that `synth` made.
    ///
    /// # Errors
    /// When a folder cannot be read, or the sizes contradict each other.
    pub fn for_sft(recipe: &Recipe, device: Device) -> Result<Self> {
        match &recipe.model {
            ModelSection::Path(dir) => Self::load(dir, device),
            ModelSection::Init(init) => {
                let tokenizer = sft_tokenizer(recipe)?;
                let seed = derive_seed(recipe.seed, Stream::Initialisation, 0, 0);
                let decoder = Decoder::init(&new_config(init, &tokenizer)?, device, seed)?;
                Ok(Self::new(decoder, tokenizer))
            }
        }
    }

    /// Writes weights, configuration and tokenizer.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.decoder.save(dir)?;
        Ok(self.tokenizer.save(dir)?)
    }

    /// Whether every weight is a number.
    pub(crate) fn is_finite(&self) -> Result<bool> {
        for (_, parameter) in self.decoder.named_parameters() {
            if parameter.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The folder that `grpo` starts from: the newest checkpoint of `sft`, or the recipe's model where the recipe has no
/// `[sft]`.
///
/// # Errors
/// When there is no such folder.
pub fn grpo_initial_model(recipe: &Recipe) -> Result<PathBuf> {
    let dir = match (&recipe.sft, &recipe.model) {
        (None, ModelSection::Path(dir)) => dir.clone(),
        _ => RunLayout::new(&recipe.run_dir).latest_model(Stage::Sft),
    };
    // The link moves when sft goes on; what is reported and fingerprinted is the checkpoint itself.
    dir.canonicalize()
        .map_err(|_| Error::NoInitialModel { path: dir })
}

/// The tokenizer of stage `sft`: that of the recipe's model, or the one that `synth` made from the task's text.
///
/// # Errors
/// When it cannot be read.
pub fn sft_tokenizer(recipe: &Recipe) -> Result<Tokenizer> {
    Ok(match &recipe.model {
        ModelSection::Path(dir) => Tokenizer::from_dir(dir)?,
        ModelSection::Init(_) => {
            Tokenizer::from_dir(&RunLayout::new(&recipe.run_dir).synth().tokenizer())?
        }
    })
}

fn new_config(init: &ModelInit, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let size = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    let eos = tokenizer.eos_id().map_or(0, |id| i64::from(id.0));
    Ok(ModelConfig::new(&ModelSizes {
        vocab_size: size(tokenizer.vocab_size()),
        hidden_size: size(init.hidden_size),
        intermediate_size: size(init.intermediate_size),
        num_layers: init.num_layers,
        num_heads: size(init.num_heads),
        num_kv_heads: size(init.num_kv_heads),
        head_dim: size(init.head_dim),
        rope_theta: init.rope_theta,
        max_position_embeddings: size(init.max_position_embeddings),
        tie_word_embeddings: init.tie_embeddings,
        eos_token_id: eos,
    })?)
}
