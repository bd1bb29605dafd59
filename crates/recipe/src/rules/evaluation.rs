//! Rules for evaluations during a run, and what ends a run by them.

use super::view::Rules;

/// Beginning of the metrics that evaluations of `grpo` measure.
const VALIDATION: &str = "validation_";

/// Keys that say how to evaluate.
const DETAILS: [&str; 3] = [
    "grpo.eval_num_problems",
    "grpo.eval_samples_per_problem",
    "grpo.eval_temperature",
];

/// A run ends early by what its evaluations measure.
pub(super) fn early_stopping(rules: &mut Rules<'_>) {
    for (stage, is_measured, hint) in [
        (
            "sft",
            (|metric| metric == "held_out_loss") as fn(&str) -> bool,
            "set `best_metric = \"held_out_loss\"`, the default",
        ),
        (
            "grpo",
            |metric| metric.starts_with(VALIDATION),
            "set `best_metric = \"validation_accuracy\"` or another of validation",
        ),
    ] {
        let key = format!("{stage}.early_stopping_patience");
        if !rules.has(&key) {
            if rules.has(&format!("{stage}.early_stopping_threshold")) {
                rules.conflict(
                    &format!("{stage}.early_stopping_threshold"),
                    "has no effect without `early_stopping_patience`",
                    "add `early_stopping_patience`, or remove it",
                );
            }
            continue;
        }
        if !rules.has(&format!("{stage}.eval_every_steps")) {
            rules.conflict(
                &key,
                &format!(
                    "counts evaluations, and there are none without `{stage}.eval_every_steps`"
                ),
                "add `eval_every_steps`, or remove it",
            );
        }
        let metric = format!("{stage}.best_metric");
        if rules.text(&metric).is_some_and(|name| !is_measured(name)) {
            rules.conflict(
                &metric,
                "is not measured by evaluations, which `early_stopping_patience` counts",
                hint,
            );
        }
    }
}

/// The best checkpoints by validation have been evaluated.
pub(super) fn best_of_grpo(rules: &mut Rules<'_>) {
    let is_kept = rules
        .number("grpo.keep_best_checkpoints")
        .is_some_and(|count| count > 0.0);
    let by_validation = rules
        .text("grpo.best_metric")
        .is_some_and(|name| name.starts_with(VALIDATION));
    if !rules.has("grpo") || !is_kept || !by_validation {
        return;
    }
    let (Some(eval), Some(save)) = (
        rules.number("grpo.eval_every_steps"),
        rules.number("grpo.save_every_steps"),
    ) else {
        rules.conflict(
            "grpo.best_metric",
            "is never measured without `grpo.eval_every_steps`",
            "add `eval_every_steps`, or set `best_metric = \"reward\"`",
        );
        return;
    };
    if eval >= 1.0 && save % eval != 0.0 {
        rules.conflict(
            "grpo.save_every_steps",
            &format!(
                "is no multiple of `eval_every_steps` = {eval}: some checkpoints would be ranked by the figure of an earlier step"
            ),
            "make it a multiple, or choose a `best_metric` of every step, for example `reward`",
        );
    }
}

/// How to evaluate is said where nothing is evaluated.
pub(super) fn without_effect(rules: &mut Rules<'_>) {
    if rules.has("grpo.eval_every_steps") {
        return;
    }
    for key in DETAILS {
        if rules.has(key) {
            rules.conflict(
                key,
                "has no effect without `eval_every_steps`",
                "add `eval_every_steps`, or remove it",
            );
        }
    }
}
