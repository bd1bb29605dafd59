//! The tokens that end a text: those of the model's configuration, and the one behind a message of its chat template.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::chat::{ChatMessage, ChatOptions, ChatTemplate};
use crate::{Error, Result};

/// Facts of a model's configuration that its tokenizer depends on.
#[derive(Debug, Default)]
pub(crate) struct ModelFacts {
    /// Ids that end generation.
    pub(super) eos: BTreeSet<u32>,
    /// Name of the architecture.
    pub(super) model_type: Option<String>,
}

impl ModelFacts {
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let mut facts = Self::default();
        // The ids that end generation are written in up to four places; a model stops at any of them.
        for name in ["generation_config.json", "config.json"] {
            let path = directory.join(name);
            if path.is_file() {
                let content = parse_json(&asyncthink_files::read_structured(&path)?, &path)?;
                collect_ids(&content["eos_token_id"], &mut facts.eos);
                if let Some(model_type) = content["model_type"].as_str() {
                    facts.model_type = Some(model_type.to_owned());
                }
            }
        }
        Ok(facts)
    }
}

/// An assistant's message that no template holds.
const SAMPLE_REPLY: &str = "asyncthink-sample-reply";

/// The added token that the template writes behind an assistant's message.
pub(super) fn turn_end(template: &ChatTemplate, inner: &tokenizers::Tokenizer) -> Option<String> {
    let messages = [
        ChatMessage::new("user", "3 + 5 = ?"),
        ChatMessage::new("assistant", SAMPLE_REPLY),
    ];
    let options = ChatOptions {
        add_generation_prompt: false,
        ..ChatOptions::default()
    };
    let text = template.render(&messages, &options).ok()?;
    let (_, behind) = text.rsplit_once(SAMPLE_REPLY)?;
    let behind = behind.trim_start();
    inner
        .get_added_tokens_decoder()
        .into_values()
        .map(|token| token.content)
        .filter(|token| !token.trim().is_empty() && behind.starts_with(token.as_str()))
        .max_by_key(String::len)
}

fn parse_json(text: &str, path: &Path) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::Tokenizer {
        path: PathBuf::from(path),
        message: error.to_string(),
    })
}

fn collect_ids(value: &Value, ids: &mut BTreeSet<u32>) {
    let values = value
        .as_array()
        .map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    ids.extend(
        values
            .iter()
            .filter_map(|id| u32::try_from(id.as_u64()?).ok()),
    );
}
