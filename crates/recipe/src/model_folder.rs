//! Whether the folder of `model.path` holds what a stage needs of it.

use std::path::Path;

use serde_json::Value;

const TEMPLATE_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// Why a file or folder that the recipe names is not what a stage needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MissingFile {
    pub(crate) reason: String,
    pub(crate) hint: &'static str,
}

impl MissingFile {
    pub(crate) fn new(reason: impl Into<String>, hint: &'static str) -> Self {
        Self {
            reason: reason.into(),
            hint,
        }
    }
}

/// Tells what a model folder lacks.
pub(crate) fn missing_model(path: &Path) -> Option<MissingFile> {
    let hint = "download a Qwen3 model from Hugging Face into this folder, or train a small one with `[model.init]`";
    if !path.is_dir() {
        return Some(MissingFile::new("no such folder", hint));
    }
    // An adapter folder names its base model; that is looked up when it is loaded.
    let is_adapter = path.join("adapter_config.json").is_file();
    let config = if is_adapter {
        "adapter_model.safetensors"
    } else {
        "config.json"
    };
    for name in [config, "tokenizer.json"] {
        if !path.join(name).is_file() {
            return Some(MissingFile::new(
                format!("the folder holds no `{name}`"),
                hint,
            ));
        }
    }
    let weights = ["model.safetensors", "model.safetensors.index.json"];
    if !is_adapter && weights.iter().all(|name| !path.join(name).is_file()) {
        let reason = format!(
            "the folder holds neither `{}` nor `{}`",
            weights[0], weights[1]
        );
        return Some(MissingFile::new(reason, hint));
    }
    None
}

/// Tells that a folder has no chat template, which the prompts need. Whether the template can be rendered is checked by those
/// who can render it.
pub(crate) fn missing_chat_template(path: &Path) -> Option<MissingFile> {
    if !path.is_dir() || path.join(TEMPLATE_FILE).is_file() {
        return None;
    }
    let config = std::fs::read(path.join(CONFIG_FILE)).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    if !config["chat_template"].is_null() {
        return None;
    }
    Some(MissingFile::new(
        format!(
            "`[prompts.chat]` needs a chat template, and the folder holds neither `{TEMPLATE_FILE}` nor `chat_template` in \
             `{CONFIG_FILE}`"
        ),
        "fetch the model's `chat_template.jinja` or `tokenizer_config.json` too, or remove `[prompts.chat]`",
    ))
}
