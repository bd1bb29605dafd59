//! Settings of the chat template in a recipe.

use serde::{Deserialize, Serialize};

/// Settings of the model's chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatSettings {
    /// The system message, which may hold `{max_workers}`; without one the conversation begins with the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The template's variable of this name; without a value the template does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_thinking: Option<bool>,
}
