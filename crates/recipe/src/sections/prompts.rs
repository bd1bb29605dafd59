//! `[prompts]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[prompts]`: the templates. `{name}` is replaced; any other brace stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptsSection {
    /// What the organizer reads. Must hold `{query}`; may hold
    /// `{max_workers}`, which is `capacity - 1`.
    pub organizer: String,
    /// What a worker reads. Must hold `{sub_query}`. A worker never sees the
    /// organizer's context.
    pub worker: String,
    /// How a problem becomes the text of `{query}`.
    pub query: String,
    /// Put the prompts into the model's own chat template. Absent means that
    /// they are used as they stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSection>,
}

/// `[prompts.chat]`: the filled template of organizer or worker is the user's
/// message, and the chat template of `model.path` makes the prompt of it. The
/// table may be empty. Needs `model.path`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatSection {
    /// System message of organizer and workers. May hold `{max_workers}`.
    /// Absent means none, and that the template may write its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Given to the template under this name; in Qwen3's, `false` begins the
    /// answer with an empty thought. Absent means that the template does not
    /// see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_thinking: Option<bool>,
}
