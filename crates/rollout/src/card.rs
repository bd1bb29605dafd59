//! `asyncthink.json`: what a model needs besides weights and tokenizer to run episodes.
//!
//! It travels with every checkpoint, so that a model folder alone says how to prompt it and by which rules to drive it.

use std::path::Path;

use asyncthink_data::{ChatSettings, PromptTemplates, PromptText};
use asyncthink_engine::SamplingParams;
use asyncthink_protocol::{Capacity, Overflow, Protocol, TagStyle};
use asyncthink_recipe::{PromptsSection, ProtocolSection};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::settings::RolloutSettings;

/// Name of the file inside a model folder.
pub const MODEL_CARD_FILE: &str = "asyncthink.json";

/// Prompts, protocol and budgets of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Version of this file's layout.
    pub format: u32,
    /// Prompt templates.
    pub prompts: PromptText,
    /// How the chat template beside this file is used; absent where prompts are plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSettings>,
    /// Spelling of the tags.
    pub tag_style: TagStyle,
    /// Agents at a time, the organizer included.
    pub capacity: Capacity,
    /// What a Fork beyond the pool does.
    pub overflow: Overflow,
    /// Tokens per sub-query.
    pub worker_max_tokens: u32,
    /// Organizer tokens before each Join.
    pub organizer_max_tokens: u32,
    /// Organizer tokens of an episode, if bounded.
    pub organizer_total_tokens: Option<u32>,
    /// Forks of an episode, if bounded.
    pub max_forks: Option<u32>,
}

impl ModelCard {
    /// The card that the sections of a recipe describe.
    pub fn new(prompts: &PromptsSection, protocol: &ProtocolSection) -> Self {
        Self {
            format: 1,
            prompts: PromptText {
                organizer: prompts.organizer.clone(),
                worker: prompts.worker.clone(),
                query: prompts.query.clone(),
            },
            chat: prompts.chat.as_ref().map(|chat| ChatSettings {
                system: chat.system.clone(),
                enable_thinking: chat.enable_thinking,
            }),
            tag_style: protocol.tag_style,
            capacity: protocol.capacity,
            overflow: protocol.overflow,
            worker_max_tokens: protocol.worker_max_tokens,
            organizer_max_tokens: protocol.organizer_max_tokens,
            organizer_total_tokens: protocol.organizer_total_tokens,
            max_forks: protocol.max_forks,
        }
    }

    /// Reads the card of a model folder.
    ///
    /// # Errors
    /// When the file is missing or is no card.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MODEL_CARD_FILE);
        let text = fs::read(&path)?;
        serde_json::from_slice(&text).map_err(|source| Error::Card {
            context: format!("reading `{}`", path.display()),
            source,
        })
    }

    /// Writes the card into a model folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(|source| Error::Card {
            context: "writing a model card".to_owned(),
            source,
        })?;
        text.push('\n');
        fs::write(dir.join(MODEL_CARD_FILE), text)?;
        Ok(())
    }

    /// Checked prompt templates.
    ///
    /// # Errors
    /// When a template lacks its placeholder.
    pub fn templates(&self) -> Result<PromptTemplates> {
        Ok(
            PromptTemplates::new(self.prompts.clone(), self.capacity.max_workers())?
                .with_chat(self.chat.clone()),
        )
    }

    /// The rules that episodes of this model obey.
    pub fn rollout_settings(&self) -> RolloutSettings {
        RolloutSettings {
            protocol: Protocol {
                tags: self.tag_style,
                capacity: self.capacity,
                overflow: self.overflow,
                max_forks: self.max_forks,
            },
            worker_max_tokens: self.worker_max_tokens as usize,
            organizer_max_tokens: self.organizer_max_tokens as usize,
            organizer_total_tokens: self.organizer_total_tokens.map(|tokens| tokens as usize),
            sampling: SamplingParams::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHOUT_CHAT: &str = r#"{
        "format": 1, "prompts": {"organizer": "{query}", "worker": "{sub_query}", "query": "{numbers}"}, "tag_style": "plain",
        "capacity": 2, "overflow": "error", "worker_max_tokens": 8, "organizer_max_tokens": 8, "organizer_total_tokens": null,
        "max_forks": null
    }"#;

    #[test]
    fn a_card_from_before_chat_templates_means_plain_text() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MODEL_CARD_FILE), WITHOUT_CHAT).unwrap();
        let card = ModelCard::read(dir.path()).unwrap();
        assert_eq!(card.chat, None);
        assert_eq!(card.templates().unwrap().chat(), None);
        card.write(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join(MODEL_CARD_FILE)).unwrap();
        assert!(!text.contains("chat"), "{text}");
    }

    #[test]
    fn chat_settings_travel_with_the_card() {
        let dir = tempfile::tempdir().unwrap();
        let card = ModelCard {
            chat: Some(ChatSettings {
                system: Some("Use {max_workers}.".to_owned()),
                enable_thinking: Some(false),
            }),
            ..serde_json::from_str(WITHOUT_CHAT).unwrap()
        };
        card.write(dir.path()).unwrap();
        let again = ModelCard::read(dir.path()).unwrap();
        assert_eq!(again, card);
        assert_eq!(again.templates().unwrap().chat(), card.chat.as_ref());
    }
}
