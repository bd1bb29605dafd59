//! Safetensors files of a model folder, read and written.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Reads every parameter of `config` from `model.safetensors`, or from the shards that an index names.
pub(crate) fn load(
    dir: &Path,
    config: &ModelConfig,
    device: Device,
    kind: Kind,
) -> Result<Vec<(String, Tensor)>> {
    let mut wanted: BTreeMap<String, Vec<i64>> = config.parameter_shapes().into_iter().collect();
    let mut found = BTreeMap::new();
    let mut problems = Vec::new();
    for file in shard_names(dir)? {
        let path = dir.join(file);
        let bytes = fs_err::read(&path)?;
        let refuse = |reason: String| Error::Weights {
            path: path.clone(),
            reason,
        };
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|error| refuse(error.to_string()))?;
        for (name, view) in tensors.iter() {
            let shape: Vec<i64> = view
                .shape()
                .iter()
                .map(|&dim| dim.cast_signed() as i64)
                .collect();
            match wanted.remove(name) {
                // A tied model may still carry the head; it is the embedding.
                None if name == "lm_head.weight" && config.tie_word_embeddings => {}
                None => problems.push(format!("unexpected `{name}`")),
                Some(expected) if expected != shape => {
                    problems.push(format!(
                        "`{name}` has shape {shape:?}, expected {expected:?}"
                    ));
                }
                Some(_) => {
                    let stored = stored_kind(view.dtype())
                        .ok_or_else(|| refuse(format!("`{name}` has type {:?}", view.dtype())))?;
                    let tensor = Tensor::f_from_data_size(view.data(), &shape, stored)?
                        .f_to_kind(kind)?
                        .f_to_device(device)?;
                    found.insert(name.to_owned(), tensor);
                }
            }
        }
    }
    problems.extend(wanted.keys().map(|name| format!("missing `{name}`")));
    if problems.is_empty() {
        return Ok(found.into_iter().collect());
    }
    let more = problems.len().saturating_sub(8);
    problems.truncate(8);
    let suffix = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Err(Error::Tensors {
        path: dir.to_owned(),
        reason: problems.join(", ") + &suffix,
    })
}

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shard_names(dir: &Path) -> Result<Vec<String>> {
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec!["model.safetensors".to_owned()]);
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

fn stored_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}

/// Writes tensors as one safetensors file, in the type that they have.
pub(crate) fn save(path: &Path, parameters: &[(String, Tensor)]) -> Result<()> {
    let mut buffers = Vec::with_capacity(parameters.len());
    for (name, tensor) in parameters {
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::Half => Dtype::F16,
            Kind::BFloat16 => Dtype::BF16,
            kind => {
                let reason = format!("`{name}` has type {kind:?}, which is not written");
                return Err(Error::Weights {
                    path: path.to_owned(),
                    reason,
                });
            }
        };
        let host = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0u8; host.numel() * host.kind().elt_size_in_bytes()];
        host.f_copy_data_u8(&mut bytes, host.numel())?;
        let shape: Vec<usize> = host
            .size()
            .iter()
            .map(|&dim| usize::try_from(dim).unwrap_or(0))
            .collect();
        buffers.push((name.as_str(), dtype, shape, bytes));
    }
    let refuse = |error: safetensors::SafeTensorError| Error::Weights {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let views = buffers
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(refuse)?;
    let metadata = Some(std::iter::once(("format".to_owned(), "pt".to_owned())).collect());
    let serialized = safetensors::serialize(views, metadata).map_err(refuse)?;
    fs_err::write(path, serialized)?;
    Ok(())
}

/// Writes `generation_config.json`, so that other engines stop at the same ids.
pub(crate) fn save_generation_config(dir: &Path, config: &ModelConfig) -> Result<()> {
    let path = dir.join("generation_config.json");
    let eos = config.eos_token_ids();
    let value = serde_json::json!({
        "do_sample": true,
        "eos_token_id": if eos.len() == 1 { serde_json::Value::from(eos[0]) } else { serde_json::Value::from(eos) },
        "temperature": 1.0,
    });
    let text = serde_json::to_string_pretty(&value).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    fs_err::write(path, text + "\n")?;
    Ok(())
}
