use asyncthink_tasks::pad_numbers;
use serde::{Deserialize, Serialize};

use crate::{ChatSettings, Error, Result};

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
    pub(crate) max_workers: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) chat: Option<ChatSettings>,
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
        Ok(Self {
            text,
            max_workers,
            chat: None,
        })
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

    /// The organizer's template, filled for a query.
    pub fn organizer(&self, query: &str) -> String {
        fill(
            &self.text.organizer,
            &[
                ("query", query),
                ("max_workers", &self.max_workers.to_string()),
            ],
        )
    }

    /// The worker's template, filled for a sub-query.
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

/// Replaces `{name}` by its value, and `{name:02}` by its value with every whole number in it padded with zeros to that
/// many digits; braces around anything else are plain text.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        rest = &rest[open..];
        let inside = rest.find('}').map(|close| &rest[1..close]);
        let known = inside.and_then(|inside| {
            let (name, width) = split_width(inside);
            let (_, value) = values.iter().find(|(known, _)| *known == name)?;
            Some((inside, pad_numbers(value, width?)))
        });
        if let Some((inside, value)) = known {
            filled.push_str(&value);
            rest = &rest[inside.len() + 2..];
        } else {
            filled.push('{');
            rest = &rest[1..];
        }
    }
    filled.push_str(rest);
    filled
}

/// Splits `name:0N` into the name and `N`; the width is 0 without one, and `None` where it cannot be read.
fn split_width(inside: &str) -> (&str, Option<usize>) {
    match inside.split_once(":0") {
        None => (inside, Some(0)),
        Some((name, width)) => (name, width.parse().ok().filter(|width| *width <= MAX_WIDTH)),
    }
}

/// Most digits that a number is padded to.
const MAX_WIDTH: usize = 18;

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
    fn numbers_are_padded_where_the_template_says_so() {
        let mut text = text();
        text.query = "{numbers:02} = {target:02} {target} {target:0x}".to_owned();
        let fields = [
            ("numbers", "3 12 105".to_owned()),
            ("target", "7".to_owned()),
        ];
        let templates = PromptTemplates::new(text, 1).unwrap();
        assert_eq!(templates.query(&fields), "03 12 105 = 07 7 {target:0x}");
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
