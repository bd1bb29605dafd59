//! Rules for `[prompts.chat]`.

use super::Rules;

impl Rules<'_> {
    pub(super) fn chat(&mut self) {
        self.template("prompts.chat.system", &[], &["max_workers"]);
        if self.has("prompts.chat") && self.has("model.init") && !self.has("model.path") {
            self.conflict(
                "prompts.chat",
                "needs the chat template of a trained model, and `[model.init]` makes a new one",
                "give the model's folder as `model.path`, or remove `[prompts.chat]`",
            );
        }
    }
}
