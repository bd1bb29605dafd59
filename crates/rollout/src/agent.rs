//! What one agent was given and what it decoded.

use asyncthink_data::TokenId;
use serde::{Deserialize, Serialize};

/// The ids of one agent in context order, with who produced each.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct AgentRecord {
    ids: Vec<TokenId>,
    decoded: Vec<bool>,
    #[serde(with = "nan_as_null")]
    logprobs: Vec<f32>,
    prompt_tokens: usize,
    ends_with_eos: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    is_truncated: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

impl AgentRecord {
    /// An agent that has decoded nothing after its prompt.
    pub fn new(prompt: Vec<TokenId>) -> Self {
        let prompt_tokens = prompt.len();
        Self {
            decoded: vec![false; prompt_tokens],
            logprobs: vec![0.0; prompt_tokens],
            ids: prompt,
            prompt_tokens,
            ends_with_eos: false,
            is_truncated: false,
        }
    }

    /// Appends a decoded token. Without a log-prob it cannot be trained on: NaN stands in its place.
    pub fn push_decoded(&mut self, token: TokenId, logprob: Option<f32>) {
        let logprob = logprob.unwrap_or(f32::NAN);
        self.ids.push(token);
        self.decoded.push(true);
        self.logprobs.push(logprob);
    }

    /// Notes that the last id is an end of sequence.
    pub fn end_with_eos(&mut self) {
        self.ends_with_eos = true;
    }

    /// Notes that a token limit ended the agent before its ANSWER or RETURN was complete.
    pub fn truncate(&mut self) {
        self.is_truncated = true;
    }

    /// Whether a token limit ended the agent before its ANSWER or RETURN was complete.
    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Decoded ids of the longest stretch without injected ones: what limits before a Join are about.
    pub fn longest_stretch(&self) -> usize {
        let stretches = self.decoded.split(|decoded| !decoded);
        stretches.map(<[bool]>::len).max().unwrap_or(0)
    }

    /// Whether the agent ended its sequence itself.
    pub fn ends_with_eos(&self) -> bool {
        self.ends_with_eos
    }

    /// Appends ids that were given to the agent.
    pub fn push_injected(&mut self, ids: &[TokenId]) {
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

    /// The ids that the agent decoded, in order.
    pub fn decoded_ids(&self) -> Vec<TokenId> {
        let ids = self.ids.iter().zip(&self.decoded);
        ids.filter(|&(_, &decoded)| decoded)
            .map(|(&id, _)| id)
            .collect()
    }

    /// Number of decoded ids.
    pub fn num_decoded(&self) -> usize {
        self.decoded.iter().filter(|&&decoded| decoded).count()
    }

    /// Number of decoded ids that latency and concurrency count: an end of sequence costs nothing, as it has no text.
    pub fn num_counted(&self) -> usize {
        self.num_decoded() - usize::from(self.ends_with_eos)
    }
}

/// JSON has no NaN.
mod nan_as_null {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &[f32], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(
            values
                .iter()
                .map(|value| Some(value).filter(|one| !one.is_nan())),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f32>, D::Error> {
        let values = Vec::<Option<f32>>::deserialize(from)?;
        Ok(values
            .into_iter()
            .map(|one| one.unwrap_or(f32::NAN))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_json_to_the_bit() {
        let mut record = AgentRecord::new(vec![TokenId(3), TokenId(4)]);
        record.push_decoded(TokenId(5), Some(-0.1));
        record.push_injected(&[TokenId(6)]);
        record.push_decoded(TokenId(7), None);
        let json = serde_json::to_string(&record).unwrap();
        let read: AgentRecord = serde_json::from_str(&json).unwrap();
        assert_eq!(read.ids(), record.ids());
        assert_eq!(
            (read.decoded(), read.prompt_tokens()),
            (record.decoded(), 2)
        );
        let bits = |record: &AgentRecord| -> Vec<u32> {
            record.logprobs().iter().map(|one| one.to_bits()).collect()
        };
        assert_eq!(bits(&read), bits(&record));
    }
}
