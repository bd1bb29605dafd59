//! `asyncthink.json`: what a model needs besides weights and tokenizer to run episodes.
//!
//! It travels with every checkpoint, so that a model folder alone says how to prompt it and by which rules to drive it.

use std::path::Path;

use asyncthink_data::{PromptTemplates, PromptText};
use asyncthink_protocol::{Capacity, Overflow, Protocol, TagStyle};
use asyncthink_recipe::RecipeData;
use asyncthink_rollout::RolloutSettings;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Name of the file inside a model folder.
pub const MODEL_CARD_FILE: &str = "asyncthink.json";

/// Prompts, protocol and budgets of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Version of this file's layout.
    pub format: u32,
    /// Prompt templates.
    pub prompts: PromptText,
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
    /// The card that a recipe describes.
    pub fn of(recipe: &RecipeData) -> Self {
        let (prompts, protocol) = (&recipe.prompts, &recipe.protocol);
        Self {
            format: 1,
            prompts: PromptText {
                organizer: prompts.organizer.clone(),
                worker: prompts.worker.clone(),
                query: prompts.query.clone(),
            },
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
        serde_json::from_slice(&text)
            .map_err(|error| Error::stage(format!("reading `{}`", path.display()), error))
    }

    /// Writes the card into a model folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::stage("writing a model card", error))?;
        text.push('\n');
        fs::write(dir.join(MODEL_CARD_FILE), text)?;
        Ok(())
    }

    /// Checked prompt templates.
    ///
    /// # Errors
    /// When a template lacks its placeholder.
    pub fn templates(&self) -> Result<PromptTemplates> {
        Ok(PromptTemplates::new(
            self.prompts.clone(),
            self.capacity.max_workers(),
        )?)
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
        }
    }
}
