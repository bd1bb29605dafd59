//! Rules for `[prompts]` and `[prompts.chat]`.

use asyncthink_tasks::Placeholders;

use super::view::Rules;
use crate::error::ErrorKind;
use crate::nearest::nearest;

/// Checks the templates; `query` are the placeholders of the recipe's task.
pub(super) fn prompts(rules: &mut Rules<'_>, query: Option<Placeholders>) {
    template(rules, "prompts.organizer", &["query"], &["max_workers"]);
    template(rules, "prompts.worker", &["sub_query"], &[]);
    if let Some(query) = query {
        template(rules, "prompts.query", query.required, query.optional);
    }
}

pub(super) fn chat(rules: &mut Rules<'_>) {
    template(rules, "prompts.chat.system", &[], &["max_workers"]);
    if rules.has("prompts.chat") && rules.has("model.init") && !rules.has("model.path") {
        rules.conflict(
            "prompts.chat",
            "needs the chat template of a trained model, and `[model.init]` makes a new one",
            "give the model's folder as `model.path`, or remove `[prompts.chat]`",
        );
    }
}

fn template(rules: &mut Rules<'_>, key: &str, needed: &[&str], allowed: &[&str]) {
    let Some(text) = rules.text(key).map(str::to_owned) else {
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
        rules.push(
            ErrorKind::OutOfRange,
            key,
            &format!("no such placeholder: `{{{name}}}`"),
            &hint,
        );
    }
    for name in needed {
        if !found.contains(name) {
            rules.push(
                ErrorKind::OutOfRange,
                key,
                &format!("the template does not hold `{{{name}}}`"),
                &format!("put `{{{name}}}` where it belongs"),
            );
        }
    }
}

/// The names in `{name}` and `{name:0N}`, where a name is lower-case letters and `_`.
fn placeholders(text: &str) -> Vec<&str> {
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
