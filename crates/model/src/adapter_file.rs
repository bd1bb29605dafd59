//! `adapter_config.json` as PEFT writes it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::lora_config::{LoraConfig, LoraTarget};

const CONFIG_FILE: &str = "adapter_config.json";

/// `adapter_config.json`, checked.
pub(crate) struct AdapterFile {
    pub(crate) config: LoraConfig,
    /// As written.
    base: String,
}

impl AdapterFile {
    pub(crate) fn new(config: &LoraConfig, base: &Path) -> Self {
        Self {
            config: config.clone(),
            base: base.to_string_lossy().into_owned(),
        }
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(CONFIG_FILE);
        let names: Vec<&str> = self.config.targets.iter().map(|t| t.name()).collect();
        let content = json!({
            "alpha_pattern": {},
            "base_model_name_or_path": self.base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": self.config.alpha,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.config.rank,
            "rank_pattern": {},
            "target_modules": names,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.config.use_rslora,
        });
        let mut text = serde_json::to_string_pretty(&content).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        text.push('\n');
        fs_err::write(path, text)?;
        Ok(())
    }

    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let text = fs_err::read_to_string(&path)?;
        let raw: Map<String, Value> =
            serde_json::from_str(&text).map_err(|source| Error::Json {
                path: path.clone(),
                source,
            })?;
        Self::from_map(&raw).map_err(|error| Error::InFile {
            path,
            source: Box::new(error),
        })
    }

    fn from_map(raw: &Map<String, Value>) -> Result<Self> {
        let top = Fields::top(raw);
        if top.text("peft_type")? != Some("LORA") {
            return Err(top.unsupported("peft_type", "`LORA`"));
        }
        refuse_variants(&top, raw)?;
        let rank = u32::try_from(top.required_size("r")?)
            .map_err(|_| Error::Config("`r` is too large".to_owned()))?;
        let base = top
            .text("base_model_name_or_path")?
            .ok_or_else(|| top.missing("base_model_name_or_path"))?;
        Ok(Self {
            config: LoraConfig {
                rank,
                alpha: top.required("lora_alpha")?,
                use_rslora: top.flag("use_rslora")?.unwrap_or(false),
                targets: targets(&top, raw)?,
            },
            base: base.to_owned(),
        })
    }

    /// The base model's folder: as written, else relative to the adapter's own.
    pub(crate) fn base(&self, dir: &Path) -> Result<PathBuf> {
        let written = PathBuf::from(&self.base);
        [written.clone(), dir.join(&written)]
            .into_iter()
            .find(|path| path.join("config.json").is_file())
            .ok_or_else(|| Error::Adapter {
                path: dir.join(CONFIG_FILE),
                reason: format!(
                    "`base_model_name_or_path` is `{}`, and no folder of a model is there",
                    self.base
                ),
            })
    }
}

/// The base model's folder of an adapter folder; `None` for a folder without `adapter_config.json`.
///
/// # Errors
/// When the file is there but cannot be read, or the base model is not where it says.
pub fn base_of(dir: &Path) -> Result<Option<PathBuf>> {
    if !dir.join(CONFIG_FILE).is_file() {
        return Ok(None);
    }
    AdapterFile::read(dir)?.base(dir).map(Some)
}

fn targets(top: &Fields<'_>, raw: &Map<String, Value>) -> Result<BTreeSet<LoraTarget>> {
    const SUPPORTED: &str = "`all-linear`, or a list of `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`";
    let refuse = || top.unsupported("target_modules", SUPPORTED);
    match raw.get("target_modules") {
        Some(Value::String(text)) if text == "all-linear" => {
            Ok(LoraTarget::ALL.into_iter().collect())
        }
        Some(Value::Array(names)) if !names.is_empty() => names
            .iter()
            .map(|name| {
                name.as_str()
                    .and_then(LoraTarget::from_name)
                    .ok_or_else(refuse)
            })
            .collect(),
        _ => Err(refuse()),
    }
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
        "layers_to_transform",
        "layers_pattern",
        "layer_replication",
        "exclude_modules",
        "target_parameters",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "arrow_config",
    ] {
        if raw.get(key).is_some_and(|value| !is_empty(value)) {
            return Err(top.unsupported(key, "nothing: every layer has the same adapters"));
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
        let config = read(json!({})).unwrap().config;
        assert!((config.scale() - 2.0).abs() < 1e-12);
        let config = read(json!({"use_rslora": true})).unwrap().config;
        assert!((config.scale() - 4.0).abs() < 1e-12);
        let all = read(json!({"target_modules": "all-linear"}))
            .unwrap()
            .config;
        assert_eq!(all.targets.len(), 7);
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
            (json!({"layers_to_transform": [0]}), "layers_to_transform"),
            (json!({"target_modules": ["lm_head"]}), "target_modules"),
            (json!({"target_modules": ".*_proj"}), "target_modules"),
            (json!({"target_modules": []}), "target_modules"),
            (json!({"r": 0}), "r"),
            (json!({"lora_alpha": null}), "lora_alpha"),
            (
                json!({"base_model_name_or_path": null}),
                "base_model_name_or_path",
            ),
        ] {
            let error = read(changes).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
        }
    }

    #[test]
    fn a_base_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(base_of(dir.path()).unwrap(), None);
        let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"],
            "base_model_name_or_path": "there"});
        fs_err::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
        let error = base_of(dir.path()).unwrap_err().to_string();
        assert!(error.contains("`there`"), "{error}");
        fs_err::create_dir(dir.path().join("there")).unwrap();
        fs_err::write(dir.path().join("there/config.json"), "{}").unwrap();
        assert_eq!(base_of(dir.path()).unwrap(), Some(dir.path().join("there")));
    }
}
