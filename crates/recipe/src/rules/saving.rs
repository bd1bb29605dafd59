//! Rules for checkpoints: which stay, and what may differ from them.

use super::evaluation;
use super::view::Rules;
use crate::check::all_paths;
use crate::document::{Node, Value};
use crate::error::{ErrorKind, RecipeError};
use crate::nearest::nearest;
use crate::saving::CHANGEABLE_INPUTS;

pub(super) fn saving(rules: &mut Rules<'_>) {
    best_metric(rules);
    evaluation::early_stopping(rules);
    evaluation::best_of_grpo(rules);
    evaluation::without_effect(rules);
    allow_changed(rules);
}

fn best_metric(rules: &mut Rules<'_>) {
    let is_asked_for = rules.has("sft")
        && rules
            .number("sft.keep_best_checkpoints")
            .is_some_and(|count| count > 0.0)
        && rules.text("sft.best_metric") == Some("held_out_loss");
    if is_asked_for && !rules.has("sft.eval_every_steps") {
        rules.conflict(
            "sft.best_metric",
            "is never measured without `sft.eval_every_steps`",
            "add `eval_every_steps`, or set `best_metric = \"loss\"`",
        );
    }
}

fn allow_changed(rules: &mut Rules<'_>) {
    let Some(Value::Array(items)) = rules.root.locate("allow_changed").1 else {
        return;
    };
    let mut keys = Vec::new();
    all_paths(rules.schema, "", &mut keys);
    // Checkpoints know nothing of benchmarks.
    keys.retain(|key| key.split('.').next() != Some("bench"));
    keys.extend(CHANGEABLE_INPUTS.map(str::to_owned));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let unknown = |(index, item): (usize, &Node)| match &item.value {
        Value::String(name) if !keys.contains(&name.as_str()) => Some(RecipeError::new(
            ErrorKind::OutOfRange,
            item.source.clone(),
            format!("allow_changed[{index}]"),
            Some(item.value.display()),
            "no such key",
            hint(name, &keys),
        )),
        _ => None,
    };
    let errors: Vec<RecipeError> = items.iter().enumerate().filter_map(unknown).collect();
    rules.errors.extend(errors);
}

fn hint(name: &str, keys: &[&str]) -> String {
    let last = |key: &str| key.rsplit('.').next() == Some(name);
    match nearest(name, keys).or_else(|| keys.iter().copied().find(|key| last(key))) {
        Some(key) => format!("did you mean `\"{key}\"`?"),
        None => {
            "write the dotted key as the refusal of the changed run names it, `\"dataset\"` or `\"initial_model\"`"
                .to_owned()
        }
    }
}
