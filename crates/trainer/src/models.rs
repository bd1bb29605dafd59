//! The model and tokenizer that a stage starts from.

use std::path::{Path, PathBuf};

use asyncthink_data::Tokenizer;
use asyncthink_model::{
    Decoder, LoraConfig, LoraTarget, ModelConfig, ModelSizes, Parallelism, Precision,
    PretrainedModel,
};
use asyncthink_recipe::{LoraSection, ModelInit, ModelSection, Recipe, Stage};
use asyncthink_torch::{
    DeviceSpec, Parallelism as ThreadUse, keep_freed_memory, open_device, set_num_threads,
    set_parallelism,
};
use tch::Device;

use crate::error::{Error, Result};
use crate::layout::RunLayout;
use crate::streams::{Stream, derive_seed};

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

/// As [`open_recipe_device`] for one of several ranks of a machine: each has a GPU of its own, and its part of the cores
/// ([`share_cores`]).
pub(crate) fn open_device_of_rank(
    recipe: &Recipe,
    local_rank: usize,
    num_local_ranks: usize,
) -> Result<Device> {
    let name = recipe.device.to_string();
    let own_gpu = DeviceSpec::Cuda(local_rank);
    let device = match name.parse()? {
        DeviceSpec::Cuda(_) if name == "cuda" => open_device(&own_gpu)?,
        DeviceSpec::Cuda(_) if num_local_ranks > 1 => {
            return Err(Error::SharedGpu {
                device: name,
                num_local_ranks,
            });
        }
        spec => match open_device(&spec)? {
            Device::Cuda(_) if spec == DeviceSpec::Auto => open_device(&own_gpu)?,
            device => device,
        },
    };
    share_cores(recipe, num_local_ranks)?;
    keep_freed_memory();
    Ok(device)
}

/// Gives this rank its part of the machine's cores, unless the recipe gives a number of threads.
pub(crate) fn share_cores(recipe: &Recipe, num_local_ranks: usize) -> Result<()> {
    let num_threads = match recipe.num_threads {
        0 => (available_cores() / num_local_ranks).max(1),
        given => given,
    };
    Ok(set_num_threads(num_threads)?)
}

fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Puts the process's threads to work as suits a decoder.
pub(crate) fn suit_threads_to(decoder: &Decoder) {
    set_parallelism(if Parallelism::for_decoder(decoder).num_workers() > 1 {
        ThreadUse::AcrossBatch
    } else {
        ThreadUse::WithinOperations
    });
}

/// Loads a folder to train it as `recipe` says: every weight, or adapters, those of the folder or new ones.
///
/// # Errors
/// When weights or tokenizer cannot be read or do not fit together, or the folder's adapters are not the recipe's.
pub(crate) fn load_to_train(
    dir: &Path,
    recipe: &Recipe,
    device: Device,
) -> Result<PretrainedModel> {
    let precision = Precision::F32;
    let model = match &recipe.lora {
        None => PretrainedModel::load(dir, device, precision)?,
        Some(section) => {
            let seed = derive_seed(recipe.seed, Stream::Initialisation, 0, 0);
            PretrainedModel::load_with_adapters(dir, device, precision, lora_config(section), seed)?
        }
    };
    suit_threads_to(&model.decoder);
    Ok(model)
}

/// Loads what `sft` starts from: the recipe's model folder, or random weights for the tokenizer that `synth` made.
///
/// # Errors
/// When a folder cannot be read, or the sizes contradict each other.
pub(crate) fn load_for_sft(recipe: &Recipe, device: Device) -> Result<PretrainedModel> {
    match &recipe.model {
        ModelSection::Path(dir) => load_to_train(dir, recipe, device),
        ModelSection::Init(init) => {
            let tokenizer = sft_tokenizer(recipe)?;
            let seed = derive_seed(recipe.seed, Stream::Initialisation, 0, 0);
            let config = new_config(init, &tokenizer)?;
            let model = PretrainedModel::init(&config, tokenizer, device, seed)?;
            suit_threads_to(&model.decoder);
            Ok(model)
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
