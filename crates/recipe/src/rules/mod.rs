//! Rules over several keys. They read the document, not the structs, so that
//! they speak even where another part of the recipe does not parse; a rule
//! whose keys are absent or ill-formed says nothing.

mod bench;
mod evaluation;
mod losses;
mod model;
mod prompts;
mod runtime;
mod saving;
mod stages;
mod task;
mod view;

use asyncthink_tasks::{Registry, Task};
use serde_json::Value as Json;

use crate::document::Node;
use crate::error::RecipeError;
use view::Rules;

/// All contradictions in `root`.
pub(crate) fn check(root: &Node, schema: &Json, tasks: &Registry) -> Vec<RecipeError> {
    let mut rules = Rules {
        root,
        schema,
        errors: Vec::new(),
    };
    let task = task::task_of(&rules, tasks);
    runtime::device(&mut rules);
    runtime::budget(&mut rules, "engine.cache_memory");
    runtime::budget(&mut rules, "memory.budget");
    if let Some(task) = task {
        task::task(&mut rules, task);
    }
    runtime::protocol(&mut rules);
    prompts::prompts(&mut rules, task.map(Task::placeholders));
    prompts::chat(&mut rules);
    model::model(&mut rules);
    stages::steps(&mut rules, "sft");
    stages::steps(&mut rules, "grpo");
    stages::grpo(&mut rules);
    losses::grpo(&mut rules);
    stages::reward(&mut rules);
    stages::eval(&mut rules);
    runtime::engine(&mut rules);
    stages::synth(&mut rules);
    bench::rollout(&mut rules);
    bench::train(&mut rules);
    bench::step(&mut rules);
    saving::saving(&mut rules);
    rules.errors
}
