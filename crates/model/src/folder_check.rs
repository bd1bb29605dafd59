//! A model folder checked without its weights: what loading would refuse, and what it would pass over.

use crate::adapter_file::base_of;
use crate::adapters;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::model_folder::ModelFolder;
use crate::weight_files::{INDEX_FILE, SINGLE_FILE, WeightFiles};
use crate::weights::{first_of, place};

/// A folder whose weights are those of its configuration.
#[derive(Clone, Debug)]
pub struct FolderReport {
    /// The configuration; of an adapter folder that of its base model.
    pub config: ModelConfig,
    /// Weight files; of an adapter folder those of its base model.
    pub num_files: usize,
    /// Tensors that the model is made of, without adapters.
    pub num_tensors: usize,
    /// Bytes that they take in the files.
    pub num_bytes: u64,
    /// Matrices of adapters.
    pub num_adapter_tensors: usize,
    /// Sentences for people on what is passed over or read in another way than it is written.
    pub warnings: Vec<String>,
}

/// Checks everything about a folder that loading would find out, but for the values: the configuration, the names, shapes and
/// types of all tensors, and that files are as long as their headers say. Of the weights nothing is read, except an output
/// head that should be the embedding.
///
/// # Errors
/// As those of loading the folder.
pub fn check_folder<'a>(folder: impl Into<ModelFolder<'a>>) -> Result<FolderReport> {
    let folder = folder.into();
    let config = ModelConfig::from_dir(folder)?;
    let base = base_of(folder)?;
    let dir = base.as_deref().unwrap_or(folder.dir());
    let num_adapter_tensors = match &base {
        Some(_) => adapters::check(folder.dir(), &config)?,
        None => 0,
    };
    let weights = WeightFiles::open(dir)?;
    let placement = place(dir, &config, &weights.files)?;
    let parameters = placement.parameters.values();
    let num_bytes = parameters
        .map(|place| weights.files[place.file].tensor_bytes(&place.stored_name))
        .sum();
    let mut warnings = Vec::new();
    let in_config =
        |warning: &String| format!("`{}`: {warning}", dir.join("config.json").display());
    warnings.extend(config.warnings().iter().map(in_config));
    if weights.has_unused_index {
        warnings.push(format!(
            "`{}` is ignored, as in `transformers`: `{SINGLE_FILE}` beside it holds the weights",
            dir.join(INDEX_FILE).display()
        ));
    }
    if !placement.unused.is_empty() {
        let names = placement.unused.iter().map(|name| format!("`{name}`"));
        warnings.push(format!(
            "`{}`: the model has no place for these tensors, which are ignored, as in `transformers`: {}",
            dir.display(),
            first_of(names.collect())
        ));
    }
    Ok(FolderReport {
        num_files: weights.files.len(),
        num_tensors: placement.parameters.len(),
        num_bytes,
        num_adapter_tensors,
        warnings,
        config,
    })
}
