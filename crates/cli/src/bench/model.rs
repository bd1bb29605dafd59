//! The model of a benchmark: the recipe's folder or shape, without a tokenizer.

use asyncthink_model::{Decoder, ModelConfig, ModelFolder, check_folder, draw_parameters};
use asyncthink_recipe::{ModelInit, ModelSection, Recipe};
use tch::{Device, Kind};

use crate::failure::Failure;
use crate::preflight;

/// Reads or makes the configuration of the recipe's model, before anything is loaded.
///
/// # Errors
/// When the folder is no model, or the sizes contradict each other.
pub(crate) fn config(recipe: &Recipe) -> Result<ModelConfig, Failure> {
    match &recipe.model {
        ModelSection::Path(dir) => {
            if !dir.is_dir() {
                let message = format!("`model.path` = `{}`: no such folder", dir.display());
                return Err(Failure::input(message).hint(
                    "download the model from Hugging Face into this folder, or make one of the shape: scripts/bench/make_model.py",
                ));
            }
            let report = check_folder(folder(recipe, dir))?;
            preflight::warn(&report.warnings);
            Ok(report.config)
        }
        ModelSection::Init(init) => new_config(init),
    }
}

fn folder<'a>(recipe: &'a Recipe, dir: &'a std::path::Path) -> ModelFolder<'a> {
    ModelFolder::new(dir).with_base(recipe.adapter_base.as_deref())
}

fn new_config(init: &ModelInit) -> Result<ModelConfig, Failure> {
    let vocab_size = init.vocab_size.ok_or_else(|| {
        // The recipe's own rules say it first.
        Failure::input("`model.init.vocab_size`: missing key")
            .hint("add `vocab_size = ...` to `[model.init]`, for example 512")
    })?;
    Ok(asyncthink_trainer::new_config(init, vocab_size, 0)?)
}

/// Loads the model, or draws its weights.
///
/// # Errors
/// When the weights cannot be read, or the memory cannot be had.
pub(crate) fn load(
    recipe: &Recipe,
    config: &ModelConfig,
    device: Device,
    kind: Kind,
) -> Result<Decoder, Failure> {
    match &recipe.model {
        ModelSection::Path(dir) => Ok(Decoder::load(folder(recipe, dir), device, kind)?),
        ModelSection::Init(_) => {
            let mut parameters = Vec::new();
            // One parameter at a time in f32.
            draw_parameters(config, recipe.seed, &mut |name, tensor| {
                parameters.push((
                    name.to_owned(),
                    tensor.f_to_device(device)?.f_to_kind(kind)?,
                ));
                Ok(())
            })?;
            Ok(Decoder::from_parameters(config, parameters)?)
        }
    }
}
