//! `trainer/manifest.json`: size and checksum of every file of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;

use asyncthink_model::ModelFolder;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::parts::expected_parts;

/// Where the manifest lies inside a checkpoint.
pub(crate) const MANIFEST_FILE: &str = "trainer/manifest.json";

/// Why a checkpoint without the file of a rank cannot be resumed.
const NO_PART: &str =
    "the part of a rank is missing: the ranks that wrote it did not share the folder";

/// Version of the checkpoint's layout.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    files: BTreeMap<String, FileSummary>,
    /// Files of the ranks that must be there, all among `files`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    parts: BTreeSet<String>,
}

/// Size and checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileSummary {
    size_bytes: u64,
    crc32: String,
}

/// Whether a run needs a file of its checkpoint to go on: its state, the moments, the model and the ids of its tokens. People
/// edit the others, such as a model card.
fn is_needed(name: &str) -> bool {
    let is_model = !name.contains('/')
        && (name.ends_with(".safetensors")
            || name.ends_with(".safetensors.index.json")
            || ["config.json", "adapter_config.json", "tokenizer.json"].contains(&name));
    is_model || name.starts_with("trainer/")
}

impl Manifest {
    /// Describes every file below `dir`.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for name in file_names(dir)? {
            files.insert(name.clone(), summarise(&dir.join(name))?);
        }
        let parts = expected_parts(files.keys());
        let manifest = Self {
            format: FORMAT,
            files,
            parts,
        };
        match manifest.missing_part() {
            Some(part) => Err(Error::DamagedCheckpoint {
                dir: dir.to_owned(),
                file: part,
                reason: NO_PART.to_owned(),
            }),
            None => Ok(manifest),
        }
    }

    /// A file of a rank that is not described. Manifests of earlier versions do not name these; one file tells of the others.
    fn missing_part(&self) -> Option<String> {
        let mut parts = self.parts.clone();
        parts.extend(expected_parts(self.files.keys()));
        parts
            .into_iter()
            .find(|name| !self.files.contains_key(name))
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::stage("writing a manifest", error))?;
        text.push('\n');
        fs::write(dir.join(MANIFEST_FILE), text)?;
        Ok(())
    }

    fn read(dir: &Path) -> Result<Self> {
        let bytes = fs::read(dir.join(MANIFEST_FILE))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::stage("reading a manifest", error))
    }

    /// Whether the files of `dir` that resuming needs have the sizes that its manifest says, and `file` its contents: enough to speak of a
    /// checkpoint without reading large weights.
    pub(crate) fn seems_whole(dir: &Path, file: &str) -> bool {
        let Ok(manifest) = Self::read(dir) else {
            return false;
        };
        let has_size = |(name, expected): (&String, &FileSummary)| {
            fs::metadata(dir.join(name)).is_ok_and(|found| found.len() == expected.size_bytes)
        };
        manifest.format == FORMAT
            && manifest.missing_part().is_none()
            && manifest
                .files
                .iter()
                .filter(|(name, _)| is_needed(name))
                .all(has_size)
            && summarise(&dir.join(file)).ok().as_ref() == manifest.files.get(file)
    }

    /// Whether two folders have the same manifest.
    pub(crate) fn is_same(dir: &Path, other: &Path) -> bool {
        let read = |dir: &Path| fs::read(dir.join(MANIFEST_FILE)).ok();
        read(dir).is_some_and(|bytes| read(other) == Some(bytes))
    }

    /// Reads the manifest of `dir` and compares every file with it. Returns what differs in files that resuming does not need.
    pub(crate) fn verify(dir: &Path) -> Result<Vec<String>> {
        let damaged = |file: &str, reason: String| Error::DamagedCheckpoint {
            dir: dir.to_owned(),
            file: file.to_owned(),
            reason,
        };
        let manifest =
            Self::read(dir).map_err(|error| damaged(MANIFEST_FILE, error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(damaged(
                MANIFEST_FILE,
                format!("layout version {} is not known", manifest.format),
            ));
        }
        if let Some(part) = manifest.missing_part() {
            return Err(damaged(&part, NO_PART.to_owned()));
        }
        let mut altered = Vec::new();
        for (name, expected) in &manifest.files {
            match difference(&dir.join(name), expected) {
                Some(reason) if is_needed(name) => return Err(damaged(name, reason)),
                Some(reason) => altered.push(format!("`{name}`: {reason}")),
                None => {}
            }
        }
        Ok(altered)
    }
}

/// How a file differs from what a manifest says.
fn difference(path: &Path, expected: &FileSummary) -> Option<String> {
    let found = match summarise(path) {
        Ok(found) => found,
        Err(error) => return Some(error.to_string()),
    };
    if found.size_bytes != expected.size_bytes {
        let (size, expected) = (found.size_bytes, expected.size_bytes);
        return Some(format!("{size} bytes, expected {expected}"));
    }
    (found.crc32 != expected.crc32)
        .then(|| format!("checksum {}, expected {}", found.crc32, expected.crc32))
}

/// Identifies the model in a folder by the checksums of its configuration, weights and tokenizer, and adapters with the
/// model that they stand on.
///
/// What a checkpoint's manifest says is believed where the sizes are right, so that large weights are not read for it.
///
/// # Errors
/// When a file cannot be read.
pub fn model_identity<'a>(folder: impl Into<ModelFolder<'a>>) -> Result<String> {
    let folder = folder.into();
    let dir = folder.dir();
    let known: BTreeMap<String, FileSummary> = fs::read(dir.join(MANIFEST_FILE))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok())
        .map(|manifest| manifest.files)
        .unwrap_or_default();
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_weights = name.ends_with(".safetensors");
        let is_config = name == "config.json" || name == "adapter_config.json";
        if is_weights || is_config || name == "tokenizer.json" {
            names.push(name);
        }
    }
    names.sort();
    let mut hasher = crc32fast::Hasher::new();
    for name in names {
        let path = dir.join(&name);
        let size_bytes = fs::metadata(&path)?.len();
        let crc32 = match known.get(&name) {
            Some(summary) if summary.size_bytes == size_bytes => summary.crc32.clone(),
            _ => summarise(&path)?.crc32,
        };
        hasher.update(format!("{name} {size_bytes} {crc32}\n").as_bytes());
    }
    if let Some(base) = asyncthink_model::base_of(folder)? {
        hasher.update(model_identity(&base)?.as_bytes());
    }
    Ok(format!("{:08x}", hasher.finalize()))
}

/// Files below `dir`, relative to it, with `/`, sorted.
pub(crate) fn file_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(dir.join(&folder))? {
            let entry = entry?;
            let name = format!("{folder}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                folders.push(format!("{name}/"));
            } else {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

pub(crate) fn summarise(path: &Path) -> Result<FileSummary> {
    let mut file = fs::File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size_bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        size_bytes += read as u64;
    }
    Ok(FileSummary {
        size_bytes,
        crc32: format!("{:08x}", hasher.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_without_the_part_of_a_rank_is_neither_described_nor_whole() {
        const STATE: &str = "trainer/state.json";
        let part = |rank: usize| format!("trainer/optimizer/rank_{rank}_of_3.safetensors");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("trainer/optimizer")).unwrap();
        fs::write(dir.path().join(STATE), "state").unwrap();
        for rank in [0, 2] {
            fs::write(dir.path().join(part(rank)), rank.to_string()).unwrap();
        }
        let error = Manifest::of(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&part(1)) && error.contains(NO_PART),
            "{error}"
        );

        fs::write(dir.path().join(part(1)), "1").unwrap();
        let mut manifest = Manifest::of(dir.path()).unwrap();
        assert_eq!(manifest.parts, [0, 1, 2].map(part).into());
        manifest.write(dir.path()).unwrap();
        Manifest::verify(dir.path()).unwrap();
        assert!(Manifest::seems_whole(dir.path(), STATE));

        // As earlier versions wrote it of ranks that did not share a folder: the file and its name are missing.
        manifest.files.remove(&part(1));
        fs::remove_file(dir.path().join(part(1))).unwrap();
        for parts in [manifest.parts.clone(), BTreeSet::new()] {
            manifest.parts = parts;
            manifest.write(dir.path()).unwrap();
            let error = Manifest::verify(dir.path()).unwrap_err();
            let Error::DamagedCheckpoint { file, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(file, part(1));
            assert!(!Manifest::seems_whole(dir.path(), STATE));
        }
    }

    #[test]
    fn a_model_is_known_by_its_weights_and_not_by_its_place_or_its_history() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        for folder in [&first, &second] {
            fs::create_dir_all(folder.join("trainer")).unwrap();
            fs::write(folder.join("config.json"), "{}").unwrap();
            fs::write(folder.join("model-00001-of-00002.safetensors"), "one").unwrap();
            fs::write(folder.join("model-00002-of-00002.safetensors"), "two").unwrap();
        }
        fs::write(second.join("trainer/state.json"), "another history").unwrap();
        let identity = model_identity(&first).unwrap();
        assert_eq!(model_identity(&second).unwrap(), identity);
        Manifest::of(&second).unwrap().write(&second).unwrap();
        assert_eq!(model_identity(&second).unwrap(), identity);
        fs::write(first.join("model-00002-of-00002.safetensors"), "owt").unwrap();
        assert_ne!(model_identity(&first).unwrap(), identity);
    }
}
