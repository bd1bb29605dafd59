//! Files of a folder that hold its weights: one safetensors file, or shards with an index.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::tensor_file::TensorFile;

pub(crate) const SINGLE_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Weights in formats that are not read, the likeliest first.
const OTHER_FORMATS: [&str; 6] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "tf_model.h5",
    "flax_model.msgpack",
];

/// The weight files of a folder, opened: their headers are sound and fit their lengths.
pub(crate) struct WeightFiles {
    pub(crate) files: Vec<TensorFile>,
    /// Whether the folder has an index as well as the single file, which is taken, as in `transformers`.
    pub(crate) has_unused_index: bool,
}

impl WeightFiles {
    /// Opens the files and reads their headers.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        if single.exists() {
            return Ok(Self {
                files: vec![TensorFile::open(&single)?],
                has_unused_index: index.exists(),
            });
        }
        if !index.exists() {
            let found = OTHER_FORMATS
                .into_iter()
                .find(|name| dir.join(name).exists());
            return Err(Error::NoWeights {
                dir: dir.to_owned(),
                found,
            });
        }
        let files = shard_names(&index)?
            .iter()
            .map(|name| TensorFile::open(&dir.join(name)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            files,
            has_unused_index: false,
        })
    }
}

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shard_names(index: &Path) -> Result<Vec<String>> {
    let text = asyncthink_files::read_structured(index)?;
    let parsed: Index = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: index.to_owned(),
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
            path: index.to_owned(),
            reason: format!("shard `{name}` is not a file name"),
        }),
        None => Ok(names),
    }
}
