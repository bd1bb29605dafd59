//! A recipe of seconds, with a model made from the task's text.

use std::path::Path;

use asyncthink_recipe::Recipe;

pub(crate) const RECIPE: &str = r#"
name = "small"
run_dir = "unused"

[task.mcd]
num_numbers = 5
number_range = [1, 12]
target_range = [2, 30]
numbers_per_solution = [2, 2]
required_solutions = 2
num_train_problems = 60
num_test_problems = 10
test_target_fraction = 0.2

[protocol]
capacity = 2
worker_max_tokens = 120
organizer_max_tokens = 120

[prompts]
organizer = "main {query}\n"
worker = "sub {sub_query}\n"
query = "{numbers} = {target}"

[model.init]
hidden_size = 16
num_layers = 1
num_heads = 2
num_kv_heads = 1
head_dim = 8
intermediate_size = 16
max_position_embeddings = 512

[synth]
num_traces = 300
focus_rate = 0.3
"#;

/// The recipe with changes as `--set` takes them.
pub(crate) fn recipe(sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    Recipe::parse(RECIPE, Path::new("small.toml"), &sets).unwrap()
}
