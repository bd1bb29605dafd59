//! The weights of a model folder: one safetensors file, or shards with an index.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tensor_file::{self, TensorFile};

/// Takes a parameter under its Hugging Face name.
pub type VisitParameter<'a> = &'a mut dyn FnMut(&str, Tensor) -> Result<()>;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

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
/// Names and shapes of all shards are compared with the configuration before the first tensor is read.
pub(crate) fn read_each(
    dir: &Path,
    config: &ModelConfig,
    device: Device,
    kind: Kind,
    visit: VisitParameter<'_>,
) -> Result<()> {
    let files = shard_names(dir)?
        .iter()
        .map(|name| TensorFile::open(&dir.join(name)))
        .collect::<Result<Vec<_>>>()?;
    for (name, file) in place(dir, config, &files)? {
        let tensor = files[file].read(&name, device, kind)?;
        visit(&name, tensor)?;
    }
    Ok(())
}

/// Which file holds which parameter; by name.
fn place(
    dir: &Path,
    config: &ModelConfig,
    files: &[TensorFile],
) -> Result<BTreeMap<String, usize>> {
    let mut wanted: BTreeMap<String, Vec<i64>> = config.parameter_shapes().into_iter().collect();
    let mut places = BTreeMap::new();
    let mut problems = Vec::new();
    for (index, file) in files.iter().enumerate() {
        for (name, shape) in file.shapes() {
            match wanted.remove(name) {
                // A tied model may still carry the head; it is the embedding.
                None if name == "lm_head.weight" && config.tie_word_embeddings => {}
                None if places.contains_key(name) => problems.push(format!("`{name}` twice")),
                None => problems.push(format!("unexpected `{name}`")),
                Some(expected) if expected != shape => {
                    problems.push(format!(
                        "`{name}` has shape {shape:?}, expected {expected:?}"
                    ));
                }
                Some(_) => {
                    places.insert(name.to_owned(), index);
                }
            }
        }
    }
    problems.extend(wanted.keys().map(|name| format!("missing `{name}`")));
    if problems.is_empty() {
        return Ok(places);
    }
    Err(Error::Tensors {
        path: dir.to_owned(),
        reason: first_of(problems),
    })
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

/// Writes the parameters into one file, or, where they are more than `max_shard_bytes`, into shards with an index.
pub(crate) fn save(
    dir: &Path,
    parameters: &[(String, Tensor)],
    max_shard_bytes: usize,
) -> Result<()> {
    let shards = shards(parameters, max_shard_bytes);
    if let [all] = shards.as_slice() {
        return tensor_file::write(&dir.join(SINGLE_FILE), all);
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        tensor_file::write(&dir.join(&file), shard)?;
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
    }
    let total_size: usize = parameters
        .iter()
        .map(|(_, tensor)| tensor_file::num_bytes(tensor))
        .sum();
    let index =
        serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    write_json(&dir.join(INDEX_FILE), &index)
}

/// Runs of parameters that fit into a file each; at least one run.
fn shards(parameters: &[(String, Tensor)], max_shard_bytes: usize) -> Vec<&[(String, Tensor)]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, (_, tensor)) in parameters.iter().enumerate() {
        let more = tensor_file::num_bytes(tensor);
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

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shard_names(dir: &Path) -> Result<Vec<String>> {
    let index = dir.join(INDEX_FILE);
    if !index.exists() {
        return Ok(vec![SINGLE_FILE.to_owned()]);
    }
    let text = fs_err::read_to_string(&index)?;
    let parsed: Index = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: index.clone(),
        source,
    })?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    // A shard is a plain file of the same folder; an index must not reach elsewhere.
    match names
        .iter()
        .find(|name| Path::new(name).components().count() != 1 || name.starts_with(".."))
    {
        Some(name) => Err(Error::Weights {
            path: index,
            reason: format!("shard `{name}` is not a file name"),
        }),
        None => Ok(names),
    }
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
