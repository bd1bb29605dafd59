//! Prompts as contexts begin with them: the recipe's text as it stands, or inside the model's chat template.

use super::{ChatMessage, ChatOptions, ChatSettings, ChatTemplate};
use crate::template::fill;
use crate::{Error, PromptForm, PromptTemplates, Result, TokenId, Tokenizer};

/// Stands for a query where a template is tried out.
const SAMPLE_QUERY: &str = "3 5 7 = 15";

impl PromptTemplates {
    /// The same prompts as the user's message in the chat template of the model, if there are settings for it.
    #[must_use]
    pub fn with_chat(mut self, chat: Option<ChatSettings>) -> Self {
        self.chat = chat;
        self
    }

    /// The settings for the chat template; `None` where prompts are plain text.
    pub fn chat(&self) -> Option<&ChatSettings> {
        self.chat.as_ref()
    }

    /// Form that the prompts have, for [`Tokenizer::encode_prompt`].
    pub fn form(&self) -> PromptForm {
        match self.chat {
            Some(_) => PromptForm::Chat,
            None => PromptForm::Plain,
        }
    }

    /// The text that an organizer's context begins with, for [`Tokenizer::encode_prompt`].
    ///
    /// # Errors
    /// The model has no usable chat template where the prompts need one, or it refuses the message.
    pub fn organizer_prompt(&self, tokenizer: &Tokenizer, query: &str) -> Result<String> {
        self.prompt(tokenizer, self.organizer(query))
    }

    /// The text that a worker's context begins with, for [`Tokenizer::encode_prompt`].
    ///
    /// # Errors
    /// As [`PromptTemplates::organizer_prompt`].
    pub fn worker_prompt(&self, tokenizer: &Tokenizer, sub_query: &str) -> Result<String> {
        self.prompt(tokenizer, self.worker(sub_query))
    }

    /// The ids that an organizer's context begins with. Special tokens come from the templates, never from the query.
    ///
    /// # Errors
    /// As [`PromptTemplates::organizer_prompt`], or the tokenizer's rules cannot be applied.
    pub fn organizer_ids(&self, tokenizer: &Tokenizer, query: &str) -> Result<Vec<TokenId>> {
        match self.chat {
            Some(_) => {
                tokenizer.encode_prompt(&self.organizer_prompt(tokenizer, query)?, self.form())
            }
            None => tokenizer.encode_filled(&self.organizer(query), &self.organizer("")),
        }
    }

    /// The ids that a worker's context begins with. Special tokens come from the templates, never from the sub-query.
    ///
    /// # Errors
    /// As [`PromptTemplates::organizer_ids`].
    pub fn worker_ids(&self, tokenizer: &Tokenizer, sub_query: &str) -> Result<Vec<TokenId>> {
        match self.chat {
            Some(_) => {
                tokenizer.encode_prompt(&self.worker_prompt(tokenizer, sub_query)?, self.form())
            }
            None => tokenizer.encode_filled(&self.worker(sub_query), &self.worker("")),
        }
    }

    /// Tries a template out on a sample of each prompt: it must render them, show what the recipe writes, and look at every
    /// variable that the recipe sets. Prompts of plain text pass.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub fn check_chat(&self, template: &ChatTemplate) -> Result<()> {
        let Some(chat) = &self.chat else {
            return Ok(());
        };
        let refused = |message: &str| Error::ChatTemplate {
            path: template.file().to_path_buf(),
            message: message.to_owned(),
        };
        if chat.enable_thinking.is_some() && !template.source().contains("enable_thinking") {
            return Err(refused(
                "the recipe sets `enable_thinking`, which it never looks at",
            ));
        }
        for prompt in [self.organizer(SAMPLE_QUERY), self.worker(SAMPLE_QUERY)] {
            let messages = self.messages(chat, prompt);
            let text = template.render(&messages, &options(chat))?;
            for message in messages {
                if !text.contains(message.content.trim()) {
                    return Err(refused(&format!(
                        "it does not show the {} message as it is",
                        message.role
                    )));
                }
            }
        }
        Ok(())
    }

    fn prompt(&self, tokenizer: &Tokenizer, user: String) -> Result<String> {
        let Some(chat) = &self.chat else {
            return Ok(user);
        };
        let mut messages = self.messages(chat, user);
        for message in &mut messages {
            message.content = tokenizer.mark_special(&message.content).into_owned();
        }
        tokenizer.chat_template()?.render(&messages, &options(chat))
    }

    fn messages(&self, chat: &ChatSettings, user: String) -> Vec<ChatMessage> {
        let max_workers = self.max_workers.to_string();
        let system = chat.system.as_deref().map(|system| {
            ChatMessage::new("system", fill(system, &[("max_workers", &max_workers)]))
        });
        system
            .into_iter()
            .chain([ChatMessage::new("user", user)])
            .collect()
    }
}

fn options(chat: &ChatSettings) -> ChatOptions {
    let thinking = chat.enable_thinking.map(|value| {
        let name = "enable_thinking".to_owned();
        (name, serde_json::Value::Bool(value))
    });
    ChatOptions {
        variables: thinking.into_iter().collect(),
        ..ChatOptions::default()
    }
}
