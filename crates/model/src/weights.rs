//! The weights of a model folder, compared with its configuration, read and written.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tensor_file::{self, TensorFile};
use crate::tied_head::{EMBEDDING, HEAD};
use crate::weight_files::{INDEX_FILE, SINGLE_FILE, WeightFiles};

/// Takes a parameter under its Hugging Face name.
pub type VisitParameter<'a> = &'a mut dyn FnMut(&str, Tensor) -> Result<()>;

/// Largest file that is written, unless one tensor alone is larger; that of `transformers` until version 5.
pub(crate) const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// How many unfit tensors an error names.
const MAX_NAMED: usize = 8;

/// Reads every parameter of `config` as `kind` on `device`; peak memory is that of the result and a chunk.
pub(crate) fn load(
    dir: &Path,
    config: &ModelConfig,
    device: Device,
    kind: Kind,
) -> Result<Vec<(String, Tensor)>> {
    let mut parameters = Vec::new();
    read_each(dir, config, device, kind, &mut |name, tensor| {
        parameters.push((name.to_owned(), tensor));
        Ok(())
    })?;
    Ok(parameters)
}

/// Reads the parameters one after another, sorted by name.
///
/// Names, shapes and types of all shards are compared with the configuration before the first tensor is read.
pub(crate) fn read_each(
    dir: &Path,
    config: &ModelConfig,
    device: Device,
    kind: Kind,
    visit: VisitParameter<'_>,
) -> Result<()> {
    let files = WeightFiles::open(dir)?.files;
    for (name, place) in place(dir, config, &files)?.parameters {
        let tensor = files[place.file].read(&place.stored_name, device, kind)?;
        visit(&name, tensor)?;
    }
    Ok(())
}

/// A parameter in the weight files.
pub(crate) struct Place {
    /// Index of the file.
    pub(crate) file: usize,
    /// Name of the parameter there.
    pub(crate) stored_name: String,
}

/// The tensors of weight files, compared with a configuration.
pub(crate) struct Placement {
    /// Place of each parameter, by name.
    pub(crate) parameters: BTreeMap<String, Place>,
    /// Names of tensors that the configuration has no use for.
    pub(crate) unused: Vec<String>,
}

/// Finds the file of each parameter. A parameter must be there once, in its shape and in a type that is read.
pub(crate) fn place(dir: &Path, config: &ModelConfig, files: &[TensorFile]) -> Result<Placement> {
    let mut wanted: BTreeMap<String, Vec<i64>> = config.parameter_shapes().into_iter().collect();
    let is_tied = config.tie_word_embeddings;
    // Of a tied model either of the two will do; where both are there, they are equal.
    let has_embedding = files.iter().any(|file| file.has(EMBEDDING));
    let mut parameters: BTreeMap<String, Place> = BTreeMap::new();
    let (mut problems, mut unused) = (Vec::new(), Vec::new());
    for (index, file) in files.iter().enumerate() {
        for (stored_name, shape) in file.shapes() {
            let name = match stored_name {
                HEAD if is_tied && has_embedding => continue,
                HEAD if is_tied => EMBEDDING,
                name => name,
            };
            let Some(expected) = wanted.remove(name) else {
                if parameters.contains_key(name) {
                    problems.push(format!("`{stored_name}` twice"));
                } else if !is_buffer(name) {
                    unused.push(stored_name.to_owned());
                }
                continue;
            };
            if let Some(dtype) = file.unread_dtype(stored_name) {
                return Err(quantised(
                    file,
                    &format!("`{stored_name}` has type {dtype}"),
                ));
            }
            if expected != shape {
                problems.push(format!(
                    "`{stored_name}` has shape {shape:?}, expected {expected:?}"
                ));
                continue;
            }
            let place = Place {
                file: index,
                stored_name: stored_name.to_owned(),
            };
            parameters.insert(name.to_owned(), place);
        }
    }
    if let Some(packed) = unused.iter().find(|name| name.ends_with(".qweight"))
        && let Some(file) = files.iter().find(|file| file.has(packed))
    {
        return Err(quantised(file, &format!("there is `{packed}`")));
    }
    problems.extend(wanted.keys().map(|name| format!("missing `{name}`")));
    if problems.is_empty() {
        return Ok(Placement { parameters, unused });
    }
    // A surplus tensor beside a missing one is often that one under another name.
    problems.extend(unused.iter().map(|name| format!("unexpected `{name}`")));
    Err(Error::Tensors {
        path: dir.to_owned(),
        reason: first_of(problems),
    })
}

/// Buffers that old files store and that are computed from the configuration, as in `transformers`.
fn is_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

fn quantised(file: &TensorFile, what: &str) -> Error {
    Error::InFile {
        path: file.path().to_owned(),
        source: Box::new(Error::Quantised {
            what: what.to_owned(),
        }),
    }
}

/// The first few of what does not fit, and how many more there are.
pub(crate) fn first_of(mut problems: Vec<String>) -> String {
    let more = problems.len().saturating_sub(MAX_NAMED);
    problems.truncate(MAX_NAMED);
    let suffix = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    problems.join(", ") + &suffix
}

/// Writes the parameters into one file, or, where they are more than `max_shard_bytes`, into shards with an index; each in the
/// type that it has, or all as `kind`.
pub(crate) fn save(
    dir: &Path,
    parameters: &[(String, Tensor)],
    kind: Option<Kind>,
    max_shard_bytes: usize,
) -> Result<()> {
    let shards = shards(parameters, kind, max_shard_bytes);
    if let [all] = shards.as_slice() {
        tensor_file::write_as(&dir.join(SINGLE_FILE), all, kind)?;
        return remove_stale(&dir.join(INDEX_FILE));
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        tensor_file::write_as(&dir.join(&file), shard, kind)?;
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
    }
    let total_size: usize = parameters
        .iter()
        .map(|(_, tensor)| tensor_file::num_bytes_as(tensor, kind))
        .sum();
    let index =
        serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    write_json(&dir.join(INDEX_FILE), &index)?;
    remove_stale(&dir.join(SINGLE_FILE))
}

/// Removes what an earlier save in the other form left, which readers could take for the weights.
fn remove_stale(path: &Path) -> Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Runs of parameters that fit into a file each; at least one run.
fn shards(
    parameters: &[(String, Tensor)],
    kind: Option<Kind>,
    max_shard_bytes: usize,
) -> Vec<&[(String, Tensor)]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, (_, tensor)) in parameters.iter().enumerate() {
        let more = tensor_file::num_bytes_as(tensor, kind);
        if index > start && bytes + more > max_shard_bytes {
            shards.push(&parameters[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += more;
    }
    shards.push(&parameters[start..]);
    shards
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    fs_err::write(path, text + "\n")?;
    Ok(())
}

/// Writes `generation_config.json`, so that other engines stop at the same ids, unless the folder has one: that of the base
/// model, which travels with the tokenizer's files, says more.
pub(crate) fn save_generation_config(dir: &Path, config: &ModelConfig) -> Result<()> {
    let path = dir.join("generation_config.json");
    if path.exists() {
        return Ok(());
    }
    let eos = config.eos_token_ids();
    let value = serde_json::json!({
        "do_sample": true,
        "eos_token_id": if eos.len() == 1 { serde_json::Value::from(eos[0]) } else { serde_json::Value::from(eos) },
        "temperature": 1.0,
    });
    write_json(&path, &value)
}
