//! `adapter_config.json` as PEFT writes it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use asyncthink_files::read_structured;
use serde_json::{Map, Value, json};

use crate::adapter_modules::ModuleRule;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::lora_config::{LoraConfig, Place};
use crate::model_folder::ModelFolder;

const CONFIG_FILE: &str = "adapter_config.json";

/// `adapter_config.json`, checked.
#[derive(Debug)]
pub(crate) struct AdapterFile {
    path: PathBuf,
    rank: u32,
    alpha: f64,
    use_rslora: bool,
    modules: ModuleRule,
    /// As written.
    base: String,
}

/// Writes `adapter_config.json` for adapters on a base model of so many layers.
pub(crate) fn write(dir: &Path, config: &LoraConfig, base: &Path, num_layers: usize) -> Result<()> {
    let path = dir.join(CONFIG_FILE);
    // Where not every layer has the same adapters, PEFT is told the whole paths.
    let names: Vec<String> = if config.without.is_empty() {
        let names = config.targets.iter().map(|target| target.name().to_owned());
        names.collect()
    } else {
        config.places(num_layers).map(Place::module).collect()
    };
    let content = json!({
        "alpha_pattern": {},
        "base_model_name_or_path": base.to_string_lossy(),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "target_modules": names,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.use_rslora,
    });
    let mut text = serde_json::to_string_pretty(&content).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    text.push('\n');
    fs_err::write(path, text)?;
    Ok(())
}

impl AdapterFile {
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let text = read_structured(&path)?;
        let raw: Map<String, Value> =
            serde_json::from_str(&text).map_err(|source| Error::Json {
                path: path.clone(),
                source,
            })?;
        Self::from_map(&raw, &path).map_err(|error| in_file(&path, error))
    }

    fn from_map(raw: &Map<String, Value>, path: &Path) -> Result<Self> {
        let top = Fields::top(raw);
        if top.text("peft_type")? != Some("LORA") {
            return Err(top.unsupported("peft_type", "`LORA`"));
        }
        refuse_variants(&top, raw)?;
        let rank = u32::try_from(top.required_size("r")?)
            .map_err(|_| Error::Config("`r` is too large".to_owned()))?;
        Ok(Self {
            path: path.to_owned(),
            rank,
            alpha: top.required("lora_alpha")?,
            use_rslora: top.flag("use_rslora")?.unwrap_or(false),
            modules: ModuleRule::read(&top, raw)?,
            base: top
                .text("base_model_name_or_path")?
                .unwrap_or_default()
                .to_owned(),
        })
    }

    /// Size, scale and place of the adapters on a base model of so many layers.
    pub(crate) fn config(&self, num_layers: usize) -> Result<LoraConfig> {
        let places = self.modules.places(num_layers);
        let places = places.map_err(|error| in_file(&self.path, error))?;
        let mut config = LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            use_rslora: self.use_rslora,
            targets: places.iter().map(|place| place.target).collect(),
            without: BTreeSet::new(),
        };
        let without = config.places(num_layers);
        config.without = without.filter(|place| !places.contains(place)).collect();
        Ok(config)
    }

    /// The base model's folder: the given one, else as written, else relative to the adapter's own.
    pub(crate) fn base(&self, folder: ModelFolder<'_>) -> Result<PathBuf> {
        let no_model = |base: &str| Error::NoBase {
            path: self.path.clone(),
            base: base.to_owned(),
        };
        let has_model = |path: &PathBuf| path.join("config.json").is_file();
        if let Some(given) = folder.given_base() {
            if !has_model(&given.to_owned()) {
                return Err(Error::Adapter {
                    path: given.to_owned(),
                    reason: "the folder given for the base model holds no `config.json`".to_owned(),
                });
            }
            // Checkpoints refer to it, from wherever they are used.
            return Ok(fs_err::canonicalize(given)?);
        }
        if self.base.is_empty() {
            return Err(no_model(""));
        }
        let written = PathBuf::from(&self.base);
        [written.clone(), folder.dir().join(&written)]
            .into_iter()
            .find(has_model)
            .ok_or_else(|| no_model(&self.base))
    }
}

fn in_file(path: &Path, error: Error) -> Error {
    Error::InFile {
        path: path.to_owned(),
        source: Box::new(error),
    }
}

/// The base model's folder of an adapter folder; `None` for a folder without `adapter_config.json`.
///
/// # Errors
/// When the file is there but cannot be read, or the base model is not where it says.
pub fn base_of<'a>(folder: impl Into<ModelFolder<'a>>) -> Result<Option<PathBuf>> {
    let folder = folder.into();
    if !folder.dir().join(CONFIG_FILE).is_file() {
        return Ok(None);
    }
    AdapterFile::read(folder.dir())?.base(folder).map(Some)
}

/// Variants of PEFT that compute something else.
fn refuse_variants(top: &Fields<'_>, raw: &Map<String, Value>) -> Result<()> {
    for key in ["use_dora", "use_qalora", "fan_in_fan_out", "lora_bias"] {
        if top.flag(key)?.unwrap_or(false) {
            return Err(top.unsupported(key, "false"));
        }
    }
    if top.text("bias")?.is_some_and(|bias| bias != "none") {
        return Err(top.unsupported("bias", "`none`"));
    }
    // Some ways to draw adapters change the base model's weights as well.
    let is_plain = |value: &Value| match value {
        Value::String(name) => name == "gaussian" || name == "orthogonal",
        _ => true,
    };
    if !raw.get("init_lora_weights").is_none_or(is_plain) {
        return Err(top.unsupported("init_lora_weights", "true, false, `gaussian`, `orthogonal`"));
    }
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    };
    for key in [
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "arrow_config",
    ] {
        if raw.get(key).is_some_and(|value| !is_empty(value)) {
            return Err(
                top.unsupported(key, "nothing: every projection has an adapter of one size")
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(changes: Value) -> Result<AdapterFile> {
        let mut config = json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
            "base_model_name_or_path": "base", "bias": "none", "modules_to_save": null, "rank_pattern": {},
        });
        let Value::Object(changes) = changes else {
            panic!("changes are an object")
        };
        for (key, value) in changes {
            config[key] = value;
        }
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
        AdapterFile::read(dir.path())
    }

    #[test]
    fn the_scale_follows_the_variant() {
        let config = |changes| read(changes).unwrap().config(2).unwrap();
        assert!((config(json!({})).scale() - 2.0).abs() < 1e-12);
        assert!((config(json!({"use_rslora": true})).scale() - 4.0).abs() < 1e-12);
        let all = config(json!({"target_modules": "all-linear"}));
        assert_eq!((all.targets.len(), all.without.len()), (7, 0));
    }

    #[test]
    fn what_computes_something_else_is_refused_by_key() {
        for (changes, key) in [
            (json!({"peft_type": "IA3"}), "peft_type"),
            (json!({"use_dora": true}), "use_dora"),
            (json!({"bias": "all"}), "bias"),
            (json!({"init_lora_weights": "pissa"}), "init_lora_weights"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
            (json!({"rank_pattern": {"q_proj": 2}}), "rank_pattern"),
            (json!({"layer_replication": [[0, 1]]}), "layer_replication"),
            (json!({"target_modules": []}), "target_modules"),
            (json!({"r": 0}), "r"),
            (json!({"lora_alpha": null}), "lora_alpha"),
        ] {
            let error = read(changes).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
        }
    }

    #[test]
    fn adapters_of_some_layers_are_written_as_they_were_read() {
        let config = read(json!({"layers_to_transform": [1]})).unwrap();
        let config = config.config(3).unwrap();
        assert_eq!((config.targets.len(), config.without.len()), (2, 4));
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &config, Path::new("base"), 3).unwrap();
        let again = AdapterFile::read(dir.path()).unwrap();
        assert_eq!(again.config(3).unwrap(), config);
    }

    #[test]
    fn a_base_is_given_or_where_it_says_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert_eq!(base_of(path).unwrap(), None);
        let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"],
            "base_model_name_or_path": "there"});
        // A byte-order mark is no part of the JSON.
        let marked = format!("\u{feff}{config}");
        fs_err::write(path.join(CONFIG_FILE), marked).unwrap();
        let error = base_of(path).unwrap_err();
        assert!(error.to_string().contains("`there`"), "{error}");
        assert!(error.hint().unwrap().contains("--base"));
        let other = path.join("other");
        let given = ModelFolder::new(path).with_base(Some(&other));
        let error = base_of(given).unwrap_err().to_string();
        assert!(
            error.contains("other") && error.contains("`config.json`"),
            "{error}"
        );
        for name in ["there", "other"] {
            fs_err::create_dir(path.join(name)).unwrap();
            fs_err::write(path.join(name).join("config.json"), "{}").unwrap();
        }
        assert_eq!(base_of(path).unwrap(), Some(path.join("there")));
        assert_eq!(base_of(given).unwrap(), Some(other.clone()));
    }
}
