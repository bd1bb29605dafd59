//! Prompts and queries of episodes.

use std::sync::Arc;

use asyncthink_data::{PromptTemplates, TokenId, Tokenizer};

use crate::error::Result;

/// The prompt of a problem: tokenised once for all episodes that begin with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Position of the problem in its data set.
    pub index: usize,
    /// The query as the organizer's prompt template takes it.
    pub query: String,
    /// Prompt tokens of the organizer.
    pub ids: Vec<TokenId>,
}

impl Prompt {
    /// Puts a query into the organizer's template and tokenises it.
    ///
    /// # Errors
    /// When the chat template refuses it, or it cannot be tokenised.
    pub fn new(
        tokenizer: &Tokenizer,
        templates: &PromptTemplates,
        index: usize,
        query: String,
    ) -> Result<Self> {
        let ids = templates.organizer_ids(tokenizer, &query)?;
        Ok(Self { index, query, ids })
    }
}

/// One episode to be run.
#[derive(Clone, Debug)]
pub struct Query {
    /// The prompt, shared by the episodes of a group.
    pub prompt: Arc<Prompt>,
    /// Which of the group's episodes this is.
    pub sample_index: usize,
    /// Seed of the episode; every agent's own seed derives from it.
    pub seed: u64,
}
