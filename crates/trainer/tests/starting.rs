//! Initial model of GRPO, and the metric that ranks its checkpoints.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;

use asyncthink_checkpoint::{RunLayout, StageLock, TrainerState};
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{Error, Resume};
use common::{Watcher, alone, finish, metrics, recipe, run};

const SHORT: [&str; 3] = [
    "sft.save_every_steps=2",
    "grpo.num_steps=2",
    "grpo.group_size=2",
];

fn start(recipe: &Recipe, resume: Resume) -> Result<Watcher, Error> {
    let mut watcher = Watcher::default();
    run(recipe, Stage::Grpo, resume, &mut watcher)?;
    Ok(watcher)
}

#[test]
fn an_unfinished_sft_is_started_from_only_if_the_recipe_says_so() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let plain = recipe(dir.path(), &[&SHORT[..], &["sft.num_steps=6"]].concat());
    let mut watcher = Watcher {
        stop_after_step: Some(4),
        ..Watcher::default()
    };
    run(&plain, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let refused = |resume| {
        let error = start(&plain, resume).unwrap_err();
        assert!(error.is_input());
        let hint = error.hint().unwrap();
        assert!(
            hint.contains("--set grpo.init_from_unfinished=true"),
            "{hint}"
        );
        error.to_string()
    };
    for resume in [Resume::Auto, Resume::Never] {
        let text = refused(resume);
        assert!(
            text.ends_with("step_4` is not a finished model: `sft` has stopped, at step 4 of 6"),
            "{text}"
        );
    }
    assert!(!plain.run_dir.join("grpo").exists(), "nothing is begun");

    let layout = RunLayout::new(&plain.run_dir);
    let lock = StageLock::acquire(&layout, Stage::Sft).unwrap();
    assert!(refused(Resume::Auto).ends_with("`sft` is still running, at step 4 of 6"));
    let asked = [
        &SHORT[..],
        &["sft.num_steps=6", "grpo.init_from_unfinished=true"],
    ]
    .concat();
    let watcher = start(&recipe(dir.path(), &asked), Resume::Auto).unwrap();
    assert_eq!(watcher.steps, [1, 2]);
    assert!(watcher.warnings[0].contains("still running, at step 4 of 6; starting from it"));
    // A run that has begun resumes without the key too.
    assert!(start(&plain, Resume::Auto).unwrap().warnings.is_empty());
    drop(lock);

    // Fewer steps are what the recipe asks for now.
    let fewer = recipe(dir.path(), &[&SHORT[..], &["sft.num_steps=4"]].concat());
    assert_eq!(start(&fewer, Resume::Never).unwrap().steps, [1, 2]);

    // Finished, but going on: the model is about to change.
    finish(&plain, Stage::Sft);
    let lock = StageLock::acquire(&layout, Stage::Sft).unwrap();
    let error = start(&plain, Resume::Never).unwrap_err();
    assert!(error.to_string().ends_with("at step 6 of 6"), "{error}");
    drop(lock);
    assert_eq!(start(&plain, Resume::Never).unwrap().steps, [1, 2]);
}

#[test]
fn a_model_that_the_recipe_names_is_taken_as_it_is() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let first = recipe(dir.path(), &[&SHORT[..], &["sft.num_steps=6"]].concat());
    let mut watcher = Watcher {
        stop_after_step: Some(2),
        ..Watcher::default()
    };
    run(&first, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let model = RunLayout::new(&first.run_dir).latest_model(Stage::Sft);
    let mut is_kept = true;
    let mut text = String::new();
    for line in first.to_toml().lines() {
        if line.starts_with('[') {
            is_kept = !line.starts_with("[sft") && !line.starts_with("[model");
        }
        if is_kept {
            text = text + line + "\n";
        }
    }
    let text = format!("{text}[model]\npath = \"{}\"\n", model.display());
    let named = Recipe::parse(&text, Path::new("named.toml"), &[]).unwrap();
    let _lock = StageLock::acquire(&RunLayout::new(&first.run_dir), Stage::Sft).unwrap();
    assert_eq!(start(&named, Resume::Auto).unwrap().steps, [1, 2]);
}

#[test]
fn rewards_of_a_moving_lambda_are_compared_under_the_final_one() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "sft.num_steps=150",
        "sft.save_every_steps=150",
        "grpo.num_steps=4",
        "grpo.save_every_steps=1",
        "grpo.keep_checkpoints=4",
        "grpo.keep_best_checkpoints=1",
        "grpo.reward={ gate_concurrency = false, lambda = 1.0, lambda_final = 0.0 }",
    ];
    let recipe = recipe(dir.path(), &sets);
    finish(&recipe, Stage::Sft);
    finish(&recipe, Stage::Grpo);
    let lines = metrics(&recipe, Stage::Grpo);
    let folder = RunLayout::new(&recipe.run_dir).checkpoints(Stage::Grpo);
    let mut scores = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let figure = |name: &str| line[name].as_f64().unwrap();
        // Without format errors in the sum, and none is paid for one here.
        let expected = figure("reward") - figure("lambda") * figure("reward_concurrency");
        let state = TrainerState::read(&folder.join(format!("step_{}", index + 1))).unwrap();
        assert!((state.figures["reward"] - expected).abs() < 1e-9);
        scores.push((expected, index + 1));
    }
    assert!(lines[0]["reward_concurrency"].as_f64().unwrap() > 0.0);
    let best = scores
        .iter()
        .max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
        .unwrap();
    let link = fs_err::read_link(folder.join("best")).unwrap();
    assert_eq!(link, Path::new(&format!("step_{}", best.1)));
}

#[test]
fn the_recipe_knows_what_the_sampler_divides_by() {
    let (of_recipe, of_model) = (
        asyncthink_recipe::MIN_TEMPERATURE,
        asyncthink_model::MIN_TEMPERATURE,
    );
    assert_eq!(of_recipe.to_bits(), of_model.to_bits());
}

#[test]
fn the_smallest_temperatures_sample_and_train() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    for temperature in ["1e-37", "1e-20"] {
        let temperature = format!("grpo.temperature={temperature}");
        let sets = [&SHORT[..], &["sft.num_steps=2", &temperature]].concat();
        let recipe = recipe(dir.path(), &sets);
        finish(&recipe, Stage::Sft);
        start(&recipe, Resume::Never).unwrap();
        for line in metrics(&recipe, Stage::Grpo) {
            assert!(line["loss"].is_number(), "{line}");
        }
    }
}
