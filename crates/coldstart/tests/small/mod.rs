//! A recipe of seconds, with a model made from the task's text.

#[path = "../../../../tests/src/tiny.rs"]
pub(crate) mod tiny;

use std::path::Path;

use asyncthink_recipe::{Catalogue, Recipe, RecipeErrors};

/// Overrides of the shared recipe.
const SETS: [&str; 7] = [
    "task.mcd.num_train_problems=60",
    "task.mcd.num_test_problems=10",
    "task.mcd.test_target_fraction=0.2",
    "protocol={ capacity = 2, worker_max_tokens = 120, organizer_max_tokens = 120 }",
    "prompts={ organizer = \"main {query}\\n\", worker = \"sub {sub_query}\\n\", query = \"{numbers} = {target}\" }",
    "model.init={ hidden_size = 16, num_layers = 1, num_heads = 2, num_kv_heads = 1, head_dim = 8, \
     intermediate_size = 16, max_position_embeddings = 512 }",
    "synth={ num_traces = 300, focus_rate = 0.3 }",
];

/// The recipe, without stages that train, with changes as `--set` takes them.
#[allow(dead_code, reason = "each test takes what it needs")]
pub(crate) fn recipe(sets: &[&str]) -> Recipe {
    load(sets, &Catalogue::builtin()).unwrap()
}

/// The recipe with the implementations of a catalogue.
pub(crate) fn load(sets: &[&str], catalogue: &Catalogue) -> Result<Recipe, RecipeErrors> {
    let sets = tiny::sets(&[&SETS, sets]);
    let text = tiny::before("sft");
    Recipe::parse_with(text, Path::new("small.toml"), &sets, catalogue)
}
