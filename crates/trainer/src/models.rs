//! The model and tokenizer that a stage starts from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use asyncthink_data::Tokenizer;
use asyncthink_distributed::Ranks;
use asyncthink_gradient::PolicyModel;
use asyncthink_model::{ModelConfig, ModelSizes};
use asyncthink_recipe::{ModelInit, ModelSection};
use tch::Device;

use crate::error::{Error, Result};
use crate::settings::RunSettings;

/// Loads what `sft` starts from: the recipe's model folder, or random weights for the tokenizer that `synth` made.
///
/// # Errors
/// When a folder cannot be read, or the sizes contradict each other.
pub(crate) fn load_for_sft(
    settings: &RunSettings,
    ranks: &Arc<Ranks>,
    device: Device,
) -> Result<PolicyModel> {
    Ok(match &settings.model {
        ModelSection::Path(dir) => PolicyModel::load(dir, &settings.policy, ranks, device)?,
        ModelSection::Init(init) => {
            let tokenizer = sft_tokenizer(settings)?;
            let config = config_for(init, &tokenizer)?;
            PolicyModel::init(&config, tokenizer, &settings.policy, ranks, device)?
        }
    })
}

/// Configuration of what [`load_for_sft`] loads.
///
/// # Errors
/// As there.
pub(crate) fn config_for_sft(settings: &RunSettings) -> Result<ModelConfig> {
    match &settings.model {
        ModelSection::Path(dir) => Ok(ModelConfig::from_dir(settings.policy.folder(dir))?),
        ModelSection::Init(init) => config_for(init, &sft_tokenizer(settings)?),
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

fn config_for(init: &ModelInit, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let eos = tokenizer.eos_id().map_or(0, |id| i64::from(id.0));
    new_config(init, tokenizer.vocab_size(), eos)
}

/// Configuration of a new model of the recipe's sizes.
///
/// # Errors
/// When the sizes contradict each other.
pub fn new_config(init: &ModelInit, vocab_size: usize, eos_token_id: i64) -> Result<ModelConfig> {
    let size = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    Ok(ModelConfig::new(&ModelSizes {
        vocab_size: size(vocab_size),
        hidden_size: size(init.hidden_size),
        intermediate_size: size(init.intermediate_size),
        num_layers: init.num_layers,
        num_heads: size(init.num_heads),
        num_kv_heads: size(init.num_kv_heads),
        head_dim: size(init.head_dim),
        rope_theta: init.rope_theta,
        max_position_embeddings: size(init.max_position_embeddings),
        tie_word_embeddings: init.tie_embeddings,
        eos_token_id,
    })?)
}
