//! Memory of whole runs: refused before anything is loaded, chosen once, measured beside the prediction.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use asyncthink_checkpoint::RunLayout;
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{Error, Resume};
use common::{Watcher, alone, copy_folder, finish, recipe, run};
use fs_err as fs;
use serde_json::Value;

fn memory(recipe: &Recipe) -> Value {
    let path = RunLayout::new(&recipe.run_dir)
        .stage(Stage::Sft)
        .join("memory.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_that_cannot_fit_is_refused_with_what_to_change() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["memory.budget=2MiB", "sft.activation_checkpointing=false"];
    let recipe = recipe(dir.path(), &sets);
    let error = run(&recipe, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(
        matches!(error, Error::Memory { .. }) && error.is_input(),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("2.00 MiB") && text.contains("activations"),
        "{text}"
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("sft.activation_checkpointing = true"),
        "{hint}"
    );
    assert!(
        !RunLayout::new(&recipe.run_dir)
            .latest_model(Stage::Sft)
            .exists()
    );
}

#[test]
fn what_is_chosen_when_a_run_begins_stays_when_it_goes_on() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let section = "sft={ num_steps = 2, batch_tokens = 40000, save_every_steps = 1, optimizer = { learning_rate = 1e-3 } }";
    let begun = recipe(&dir.path().join("begun"), &[section, "memory.budget=72MiB"]);
    let mut watcher = Watcher {
        stop_after_step: Some(1),
        ..Watcher::default()
    };
    run(&begun, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let first = memory(&begun);
    let tokens = first["micro_batch_tokens"].as_u64().unwrap();
    assert!((512..16_384).contains(&tokens), "{first}");
    let parts = first["predicted"]["parts"].as_array().unwrap();
    assert!(
        parts.iter().any(|part| part["name"] == "moments"),
        "{first}"
    );
    assert!(first["peak_bytes"].as_u64() > Some(0), "{first}");

    // With more memory it would be more.
    let goes_on = recipe(
        &dir.path().join("goes on"),
        &[section, "memory.budget=4GiB"],
    );
    copy_folder(&begun.run_dir.join("sft"), &goes_on.run_dir.join("sft"));
    finish(&goes_on, Stage::Sft);
    assert_eq!(memory(&goes_on)["micro_batch_tokens"], tokens);
    let anew = recipe(&dir.path().join("anew"), &[section, "memory.budget=4GiB"]);
    finish(&anew, Stage::Sft);
    assert_eq!(memory(&anew)["micro_batch_tokens"], 16_384);
}
