//! The chat template of a Hugging Face model folder, rendered as `transformers` 5 renders it.
//!
//! A template is a program that came with the model. It sees the messages, the tokenizer's named special tokens and the
//! variables that the caller gives, and nothing else: no files, no other templates, no clock. Its steps and its output are
//! bounded; what a single step takes is not, such as `indent` by a huge width.
//!
//! `strftime_now` is not defined. A prompt that depends on the day would differ between training and use, and between two
//! runs of one recipe. Templates that ask whether it is defined fall back to a date of their own; one that calls it all the
//! same is refused with that reason.

mod environment;
mod json;
mod marks;
mod prompts;
mod python;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::{Deserialize, Serialize};

pub(crate) use self::marks::{Piece, mark, pieces};
pub use self::settings::ChatSettings;
use crate::companions::{self, Companions};
use crate::special_tokens::{CONFIG_FILE, SPECIAL_TOKENS_FILE, special_tokens};
use crate::{Error, Result};

/// The file that holds a template alone; it comes before one in the settings.
pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Longest template that is compiled; real ones have some ten thousand bytes.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant` in most templates.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// What a template is told besides the messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatOptions {
    /// Whether the text ends where the assistant's next message begins.
    pub add_generation_prompt: bool,
    /// More variables in the template's scope, such as `enable_thinking`. They come before special tokens of the same
    /// name, and before `tools` and `documents`, which are none.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl Default for ChatOptions {
    /// A prompt to generate from, and no variables.
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            variables: BTreeMap::new(),
        }
    }
}

/// A compiled chat template with the special tokens that it may write.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// The file that it was read from.
    file: PathBuf,
    source: String,
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads the template of a model folder: `chat_template.jinja`, or else `chat_template` in `tokenizer_config.json`, a
    /// text or a list of named ones of which `default` is taken. Special tokens come from `tokenizer_config.json` and
    /// `special_tokens_map.json`.
    ///
    /// # Errors
    /// A file cannot be read, there is no template, or it uses what the engine does not know.
    pub fn from_dir(directory: &Path) -> Result<Self> {
        let companions = companions::read(directory)?;
        let json = |name| companions::json(&companions, directory, name);
        let names = special_tokens(&json(CONFIG_FILE)?, &json(SPECIAL_TOKENS_FILE)?);
        Self::from_files(directory, &companions, &names)
    }

    /// [`ChatTemplate::from_dir`] from the contents of its files, and the special tokens by name.
    pub(crate) fn from_files(
        directory: &Path,
        companions: &Companions,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let (file, source) = if let Some(bytes) = companions.get(TEMPLATE_FILE) {
            let file = directory.join(TEMPLATE_FILE);
            let source =
                asyncthink_files::decode_text(bytes).map_err(|error| error.in_file(&file))?;
            (file, source.to_owned())
        } else {
            let file = directory.join(CONFIG_FILE);
            let config = companions::json(companions, directory, CONFIG_FILE)?;
            match named_template(&config["chat_template"]) {
                Ok(Some(source)) => (file, source.to_owned()),
                Ok(None) => {
                    return Err(Error::NoChatTemplate {
                        directory: directory.to_path_buf(),
                    });
                }
                Err(message) => return Err(refused(&file, message)),
            }
        };
        Self::new(file, &source, special_tokens.clone())
    }

    /// Compiles a template; `file` is used in messages only, `special_tokens` are in scope by name.
    ///
    /// # Errors
    /// The template is too long, or uses what the engine does not know.
    pub fn new(
        file: PathBuf,
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let message = format!(
                "it has {} bytes, more than {MAX_TEMPLATE_BYTES}",
                source.len()
            );
            return Err(refused(&file, message));
        }
        let environment = environment::compile(source)
            .map_err(|error| refused(&file, environment::describe(&error)))?;
        Ok(Self {
            file,
            source: source.to_owned(),
            environment,
            special_tokens,
        })
    }

    /// The text of a conversation. It may hold special tokens that the template or a message wrote; no token is added to it.
    ///
    /// # Errors
    /// The template refuses the messages (`raise_exception`), fails, or exceeds its bounds.
    pub fn render(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                Value::from_pairs([
                    ("role", Value::from(message.role.as_str())),
                    ("content", Value::from(message.content.as_str())),
                ])
            })
            .collect();
        let mut scope: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .map(|(name, text)| (name.as_str(), Value::from(text.as_str())))
            .collect();
        scope.extend(["tools", "documents"].map(|name| (name, Value::from(()))));
        for (name, value) in &options.variables {
            scope.insert(name.as_str(), Value::from(Serde(value)));
        }
        scope.extend([
            ("messages", Value::from(messages)),
            (
                "add_generation_prompt",
                Value::from(options.add_generation_prompt),
            ),
        ]);
        environment::render(&self.environment, Value::from_pairs(scope)).map_err(|message| {
            Error::ChatRender {
                path: self.file.clone(),
                message,
            }
        })
    }

    /// The file that the template was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The template as it is written.
    pub fn source(&self) -> &str {
        &self.source
    }
}

fn refused(path: &Path, message: impl Into<String>) -> Error {
    Error::ChatTemplate {
        path: path.to_path_buf(),
        message: message.into(),
    }
}

/// The template in a value of `tokenizer_config.json`: a text, or the `default` one of a list.
fn named_template(value: &serde_json::Value) -> Result<Option<&str>, String> {
    match value {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(text) => Ok(Some(text)),
        serde_json::Value::Array(templates) => {
            let default = templates
                .iter()
                .find(|template| template["name"] == "default")
                .and_then(|template| template["template"].as_str());
            default
                .map(Some)
                .ok_or_else(|| "`chat_template` is a list without one named `default`".to_owned())
        }
        _ => Err("`chat_template` is neither a text nor a list of named ones".to_owned()),
    }
}

#[cfg(test)]
mod tests;
