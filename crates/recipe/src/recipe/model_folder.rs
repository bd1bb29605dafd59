//! Whether the folder of `model.path` holds what a stage needs of it.

use std::path::Path;

use serde_json::Value;

use super::Recipe;
use crate::error::RecipeError;

const TEMPLATE_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";

impl Recipe {
    pub(super) fn missing_model(&self, path: &Path) -> Option<RecipeError> {
        let key = "model.path";
        let hint = "download a Qwen3 model from Hugging Face into this folder, or train a small one with `[model.init]`";
        if !path.is_dir() {
            return Some(self.missing(key, path, "no such folder", hint));
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
                return Some(self.missing(
                    key,
                    path,
                    &format!("the folder holds no `{name}`"),
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
            return Some(self.missing(key, path, &reason, hint));
        }
        None
    }

    /// Finds out that a folder has no chat template where the prompts need one. Whether the template can be rendered is
    /// checked by those who can render it.
    pub(super) fn missing_chat_template(&self, path: &Path) -> Option<RecipeError> {
        let is_wanted = self.data.prompts.chat.is_some() && path.is_dir();
        if !is_wanted || path.join(TEMPLATE_FILE).is_file() {
            return None;
        }
        let config = std::fs::read(path.join(CONFIG_FILE)).unwrap_or_default();
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        if !config["chat_template"].is_null() {
            return None;
        }
        Some(self.missing(
            "model.path",
            path,
            &format!(
                "`[prompts.chat]` needs a chat template, and the folder holds neither `{TEMPLATE_FILE}` nor `chat_template` in \
                 `{CONFIG_FILE}`"
            ),
            "fetch the model's `chat_template.jinja` or `tokenizer_config.json` too, or remove `[prompts.chat]`",
        ))
    }
}
