//! The model and tokenizer that a stage starts from.

use std::path::{Path, PathBuf};

use asyncthink_data::{Stream, Tokenizer, derive_seed};
use asyncthink_model::{LoraConfig, LoraTarget, ModelConfig, ModelSizes, PretrainedModel};
use asyncthink_recipe::{LoraSection, ModelInit, ModelSection};
use tch::Device;

use crate::error::{Error, Result};
use crate::settings::RunSettings;

/// Loads a folder to train it as the settings say: every weight, or adapters, those of the folder or new ones.
///
/// # Errors
/// When weights or tokenizer cannot be read or do not fit together, or the folder's adapters are not the recipe's.
pub(crate) fn load_to_train(
    dir: &Path,
    settings: &RunSettings,
    device: Device,
) -> Result<PretrainedModel> {
    let precision = settings.precision;
    Ok(match &settings.lora {
        None => PretrainedModel::load(dir, device, precision)?,
        Some(section) => {
            let seed = derive_seed(settings.seed, Stream::Initialisation, 0, 0);
            PretrainedModel::load_with_adapters(dir, device, precision, lora_config(section), seed)?
        }
    })
}

/// Loads what `sft` starts from: the recipe's model folder, or random weights for the tokenizer that `synth` made.
///
/// # Errors
/// When a folder cannot be read, or the sizes contradict each other.
pub(crate) fn load_for_sft(settings: &RunSettings, device: Device) -> Result<PretrainedModel> {
    match &settings.model {
        ModelSection::Path(dir) => load_to_train(dir, settings, device),
        ModelSection::Init(init) => {
            let tokenizer = sft_tokenizer(settings)?;
            let seed = derive_seed(settings.seed, Stream::Initialisation, 0, 0);
            let config = new_config(init, &tokenizer)?;
            Ok(PretrainedModel::init(&config, tokenizer, device, seed)?)
        }
    }
}

fn lora_config(section: &LoraSection) -> LoraConfig {
    LoraConfig {
        rank: section.rank,
        alpha: section.alpha,
        use_rslora: section.use_rslora,
        targets: section
            .target_modules
            .iter()
            .filter_map(|module| LoraTarget::from_name(module.name()))
            .collect(),
    }
}

/// The folder of `path`, links followed: the link to a stage's newest checkpoint moves when that stage goes on.
///
/// # Errors
/// When there is no such folder.
pub(crate) fn initial_model(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|_| Error::NoInitialModel {
        path: path.to_owned(),
    })
}

/// The tokenizer of stage `sft`: that of the recipe's model, or the one that `synth` made from the task's text.
///
/// # Errors
/// When it cannot be read.
pub fn sft_tokenizer(settings: &RunSettings) -> Result<Tokenizer> {
    Ok(match &settings.model {
        ModelSection::Path(dir) => Tokenizer::from_dir(dir)?,
        ModelSection::Init(_) => Tokenizer::from_dir(&settings.layout.synth().tokenizer())?,
    })
}

pub(crate) fn new_config(init: &ModelInit, tokenizer: &Tokenizer) -> Result<ModelConfig> {
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
