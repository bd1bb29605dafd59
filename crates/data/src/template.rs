use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The templates as a recipe writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptText {
    /// The organizer's prompt; must hold `{query}`, may hold `{max_workers}`.
    pub organizer: String,
    /// A worker's prompt; must hold `{sub_query}`.
    pub worker: String,
    /// A problem as text, over the task's fields, for instance `{numbers} = {target}`.
    pub query: String,
}

/// Checked prompt templates: what an agent's context begins with.
///
/// Only known placeholders are replaced, all in one pass, so that a query that happens to hold `{max_workers}` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTemplates {
    text: PromptText,
    max_workers: u32,
}

impl PromptTemplates {
    /// Checks the templates.
    ///
    /// # Errors
    /// The organizer's template lacks `{query}` or the worker's lacks `{sub_query}`.
    pub fn new(text: PromptText, max_workers: u32) -> Result<Self> {
        for (template, content, placeholder) in [
            ("organizer", &text.organizer, "{query}"),
            ("worker", &text.worker, "{sub_query}"),
        ] {
            if !content.contains(placeholder) {
                return Err(Error::MissingPlaceholder {
                    template,
                    placeholder,
                });
            }
        }
        Ok(Self { text, max_workers })
    }

    /// The templates as written.
    pub fn text(&self) -> &PromptText {
        &self.text
    }

    /// A problem as text. `fields` are the task's, for instance `("numbers", "3 5 7")`.
    pub fn query(&self, fields: &[(&str, String)]) -> String {
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        fill(&self.text.query, &fields)
    }

    /// The organizer's prompt for a query.
    pub fn organizer(&self, query: &str) -> String {
        fill(
            &self.text.organizer,
            &[
                ("query", query),
                ("max_workers", &self.max_workers.to_string()),
            ],
        )
    }

    /// A worker's prompt for a sub-query.
    pub fn worker(&self, sub_query: &str) -> String {
        fill(
            &self.text.worker,
            &[
                ("sub_query", sub_query),
                ("max_workers", &self.max_workers.to_string()),
            ],
        )
    }
}

/// Replaces `{name}` by its value; braces around anything else are plain text.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        rest = &rest[open..];
        let known = values.iter().find(|(name, _)| {
            rest[1..]
                .strip_prefix(name)
                .is_some_and(|after| after.starts_with('}'))
        });
        if let Some((name, value)) = known {
            filled.push_str(value);
            rest = &rest[name.len() + 2..];
        } else {
            filled.push('{');
            rest = &rest[1..];
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> PromptText {
        PromptText {
            organizer: r"at most {max_workers}; put it in \boxed{}: {query}".to_owned(),
            worker: "Subtask: {sub_query}".to_owned(),
            query: "{numbers} = {target}".to_owned(),
        }
    }

    #[test]
    fn placeholders_are_filled_once() {
        let templates = PromptTemplates::new(text(), 3).unwrap();
        let query = templates.query(&[
            ("numbers", "3 5".to_owned()),
            ("target", "{max_workers}".to_owned()),
        ]);
        assert_eq!(query, "3 5 = {max_workers}");
        assert_eq!(
            templates.organizer(&query),
            r"at most 3; put it in \boxed{}: 3 5 = {max_workers}"
        );
        assert_eq!(templates.worker("{query}"), "Subtask: {query}");
    }

    #[test]
    fn a_template_without_its_question_is_refused() {
        let missing = PromptText {
            worker: "Subtask".to_owned(),
            ..text()
        };
        assert!(matches!(
            PromptTemplates::new(missing, 1),
            Err(Error::MissingPlaceholder {
                template: "worker",
                ..
            })
        ));
    }
}
