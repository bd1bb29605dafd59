//! What one agent was given and what it decoded.

use asyncthink_data::TokenId;

/// The ids of one agent in context order, with who produced each.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct AgentRecord {
    ids: Vec<TokenId>,
    decoded: Vec<bool>,
    logprobs: Vec<f32>,
    prompt_tokens: usize,
}

impl AgentRecord {
    pub(crate) fn new(prompt: Vec<TokenId>) -> Self {
        let prompt_tokens = prompt.len();
        Self {
            decoded: vec![false; prompt_tokens],
            logprobs: vec![0.0; prompt_tokens],
            ids: prompt,
            prompt_tokens,
        }
    }

    pub(crate) fn push_decoded(&mut self, token: TokenId, logprob: f32) {
        self.ids.push(token);
        self.decoded.push(true);
        self.logprobs.push(logprob);
    }

    pub(crate) fn push_injected(&mut self, ids: &[TokenId]) {
        self.ids.extend_from_slice(ids);
        self.decoded.resize(self.ids.len(), false);
        self.logprobs.resize(self.ids.len(), 0.0);
    }

    /// Prompt, decoded and injected ids in the order that the model saw them.
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// Whether the agent decoded the id (prompt and injected ids are false); as long as [`Self::ids`].
    pub fn decoded(&self) -> &[bool] {
        &self.decoded
    }

    /// Log-prob at which each id was sampled, 0 where it was not decoded; as long as [`Self::ids`].
    pub fn logprobs(&self) -> &[f32] {
        &self.logprobs
    }

    /// Length of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Number of decoded ids.
    pub fn num_decoded(&self) -> usize {
        self.decoded.iter().filter(|&&decoded| decoded).count()
    }
}
