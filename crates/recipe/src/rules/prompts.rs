//! Rules for `[prompts]` and `[prompts.chat]`.

use super::Rules;
use crate::error::ErrorKind;
use crate::nearest::nearest;

impl Rules<'_> {
    pub(super) fn prompts(&mut self) {
        self.template("prompts.organizer", &["query"], &["max_workers"]);
        self.template("prompts.worker", &["sub_query"], &[]);
        self.template(
            "prompts.query",
            &["numbers", "target"],
            &["required", "min_numbers", "max_numbers"],
        );
    }

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

    fn template(&mut self, key: &str, needed: &[&str], allowed: &[&str]) {
        let Some(text) = self.text(key).map(str::to_owned) else {
            return;
        };
        let found = placeholders(&text);
        let known: Vec<&str> = needed.iter().chain(allowed).copied().collect();
        for name in &found {
            if known.contains(name) {
                continue;
            }
            let hint = nearest(name, &known).map_or_else(
                || {
                    let quoted: Vec<_> = known.iter().map(|name| format!("`{{{name}}}`")).collect();
                    format!("this template knows {}", quoted.join(", "))
                },
                |name| format!("did you mean `{{{name}}}`?"),
            );
            self.push(
                ErrorKind::OutOfRange,
                key,
                &format!("no such placeholder: `{{{name}}}`"),
                &hint,
            );
        }
        for name in needed {
            if !found.contains(name) {
                self.push(
                    ErrorKind::OutOfRange,
                    key,
                    &format!("the template does not hold `{{{name}}}`"),
                    &format!("put `{{{name}}}` where it belongs"),
                );
            }
        }
    }
}

/// The names in `{name}` and `{name:0N}`, where a name is lower-case letters and `_`.
pub(crate) fn placeholders(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        rest = &rest[open + 1..];
        let end = rest
            .find(|c: char| !(c.is_ascii_lowercase() || c == '_'))
            .unwrap_or(rest.len());
        let after = &rest[end..];
        if end > 0 && (after.starts_with('}') || after.starts_with(":0")) {
            found.push(&rest[..end]);
        }
    }
    found
}
