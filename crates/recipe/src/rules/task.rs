//! Rules for `[task]`, most of which the task brings.

use asyncthink_tasks::{ConfigView, FaultKind, ProblemCount, Registry, Task};

use super::view::Rules;
use crate::document::Value;
use crate::error::ErrorKind;

/// The task that the recipe names; the only one there is where it names none.
pub(super) fn task_of(rules: &Rules<'_>, tasks: &Registry) -> Option<&'static dyn Task> {
    let written = match rules.root.locate("task").1 {
        Some(Value::Table(entries)) => entries.iter().find_map(|entry| tasks.get(&entry.key)),
        _ => None,
    };
    let mut all = tasks.iter();
    let only = all.next().filter(|_| all.next().is_none());
    written.or(only)
}

/// Checks the section of the task, and that no stage uses more problems than it makes.
pub(super) fn task(rules: &mut Rules<'_>, task: &dyn Task) {
    let section = format!("task.{}", task.name());
    let Some(written) = rules.root.locate(&section).1.map(Value::to_json) else {
        return;
    };
    let schema = &rules.schema["properties"]["task"]["properties"][task.name()];
    let config = ConfigView::new(&written, schema);
    for fault in task.check(&config) {
        let kind = match fault.kind {
            FaultKind::MissingKey => ErrorKind::MissingKey,
            FaultKind::Conflict => ErrorKind::Conflict,
        };
        let key = format!("{section}.{}", fault.key);
        rules.push(kind, &key, &fault.reason, &fault.hint);
    }
    let counts = task.problem_counts(&config);
    offered(
        rules,
        "grpo.prompts_per_step",
        counts.train,
        "training",
        &section,
    );
    if rules.has("grpo.eval_every_steps") {
        if let Some(none) = counts.validation.filter(|offered| offered.count == 0.0) {
            rules.conflict(
                "grpo.eval_every_steps",
                "there are no validation problems",
                &format!("add `{section}.{}`, and run `synth` again", none.key),
            );
        } else {
            offered(
                rules,
                "grpo.eval_num_problems",
                counts.validation,
                "validation",
                &section,
            );
        }
    }
    if rules.text("eval.split") == Some("validation") {
        if let Some(none) = counts.validation.filter(|offered| offered.count == 0.0) {
            rules.conflict(
                "eval.split",
                "there are no validation problems",
                &format!("add `{section}.{}`, or measure on `test`", none.key),
            );
            return;
        }
        offered(
            rules,
            "eval.num_problems",
            counts.validation,
            "validation",
            &section,
        );
    } else {
        offered(rules, "eval.num_problems", counts.test, "test", &section);
    }
}

fn offered(
    rules: &mut Rules<'_>,
    key: &str,
    offered: Option<ProblemCount>,
    split: &str,
    section: &str,
) {
    if let (Some(wanted), Some(offered)) = (rules.number(key), offered)
        && wanted > offered.count
    {
        rules.conflict(
            key,
            &format!("only {} {split} problems are made", offered.count),
            &format!("lower it, or raise `{section}.{}`", offered.key),
        );
    }
}
