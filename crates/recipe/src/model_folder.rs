//! Whether the folder of `model.path` holds what a stage needs of it.

use std::path::Path;

use serde_json::Value;

const TEMPLATE_FILE: &str = "chat_template.jinja";
const BASE_HINT: &str =
    "give the folder of the model that the adapters in `model.path` were trained on";
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
        if path.join(name).is_dir() {
            return Some(MissingFile::new(
                format!("`{name}` is a folder there, not a file"),
                hint,
            ));
        }
        if !path.join(name).is_file() {
            return Some(MissingFile::new(
                format!("the folder holds no `{name}`"),
                hint,
            ));
        }
    }
    if is_adapter {
        None
    } else {
        missing_weights(path)
    }
}

/// Tells that a folder holds no weights in the one format that is read, and what it holds instead.
fn missing_weights(path: &Path) -> Option<MissingFile> {
    let weights = ["model.safetensors", "model.safetensors.index.json"];
    if weights.iter().any(|name| path.join(name).exists()) {
        return None;
    }
    let reason = format!(
        "the folder holds neither `{}` nor `{}`",
        weights[0], weights[1]
    );
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    Some(
        match pickled.iter().find(|name| path.join(name).is_file()) {
            Some(name) => MissingFile::new(
                format!("{reason}, but `{name}`"),
                "convert the model to safetensors: load it with `transformers` and write it with `model.save_pretrained(DIR)`",
            ),
            None => MissingFile::new(
                reason,
                "download a Qwen3 model from Hugging Face into this folder, or train a small one with `[model.init]`",
            ),
        },
    )
}

/// Tells what is wrong with the folder that is given as the base of the adapters in the folder `adapters`.
pub(crate) fn missing_base(adapters: &Path, base: &Path) -> Option<MissingFile> {
    if !base.is_dir() {
        return Some(MissingFile::new("no such folder", BASE_HINT));
    }
    if !base.join("config.json").is_file() {
        return Some(MissingFile::new(
            "the folder holds no `config.json`",
            BASE_HINT,
        ));
    }
    if adapters.is_dir() && !adapters.join("adapter_config.json").is_file() {
        return Some(MissingFile::new(
            "`model.path` is no adapter folder: it holds no `adapter_config.json`",
            "remove `adapter_base`: it is for adapters whose base model is not where they say",
        ));
    }
    None
}

/// Tells that a folder has no chat template, which the prompts need. Whether the template can be rendered is checked by those
/// who can render it.
pub(crate) fn missing_chat_template(path: &Path) -> Option<MissingFile> {
    if !path.is_dir() || path.join(TEMPLATE_FILE).is_file() {
        return None;
    }
    // Without a byte-order mark; what is no JSON is named by those who read all of it.
    let config = asyncthink_files::read_structured(&path.join(CONFIG_FILE)).unwrap_or_default();
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
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
