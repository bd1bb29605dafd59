//! Every recipe in `recipes/` passes the checks that a run begins with.

use std::path::{Path, PathBuf};

use asyncthink_recipe::Recipe;
use asyncthink_tests::Workspace;

fn recipes(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(recipes(&path));
        } else if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_papers_recipes_have_the_papers_reward() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/paper");
    let found = recipes(&root.canonicalize().expect("the recipes"));
    assert!(!found.is_empty());
    for path in found {
        let recipe = Recipe::load(&path, &[]).unwrap_or_else(|errors| panic!("{errors}"));
        let grpo = recipe.grpo.as_ref().expect("a section");
        assert!(!grpo.reward.gate_concurrency && grpo.reward.count_unjoined);
        assert_eq!(grpo.reward.lambda_final, None);
        assert!(
            grpo.kl_beta.abs() < f64::EPSILON,
            "the paper names no reference"
        );
    }
}

#[test]
fn every_recipe_is_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let found = recipes(&root.canonicalize().expect("the recipes"));
    assert!(found.len() >= 2, "{found:?}");
    for path in found {
        let loaded = Recipe::load(&path, &[]).unwrap_or_else(|errors| panic!("{errors}"));
        if path
            .parent()
            .is_some_and(|folder| folder.ends_with("bench"))
        {
            loaded
                .bench_rollout()
                .unwrap_or_else(|errors| panic!("{errors}"));
            continue;
        }
        let workspace = Workspace::new();
        let recipe = path.display().to_string();
        for stage in ["synth", "sft", "grpo", "eval"] {
            let output = workspace.run(&[stage, &recipe, "--set", "device=cpu", "--dry-run"]);
            let shown = workspace.show(&output);
            // A model folder is not part of the project: such a recipe is checked no further.
            let is_without_model =
                shown.contains("error: `model.path` = ") && shown.contains(": no such folder");
            assert!(output.status.success() || is_without_model, "{shown}");
        }
    }
}
