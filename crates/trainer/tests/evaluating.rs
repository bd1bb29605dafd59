//! Evaluations during a run: what they measure, the best checkpoint by them, and runs that they end.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;

use asyncthink_checkpoint::RunLayout;
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{Error, Resume, RunOutcome};
use common::{Watcher, alone, finish, metrics, recipe, run, weights};
use fs_err as fs;
use serde_json::Value;

/// Validation problems, and an evaluation every other step.
const EVALUATED: [&str; 6] = [
    "task.mcd.num_validation_problems=3",
    "task.mcd.validation_target_fraction=0.2",
    "sft.num_steps=4",
    "grpo.num_steps=6",
    "grpo.eval_every_steps=2",
    "grpo.eval_samples_per_problem=2",
];

fn evaluated(dir: &Path, sets: &[&str]) -> Recipe {
    recipe(dir, &[&EVALUATED, sets].concat())
}

/// Steps whose lines have an evaluation.
fn evaluated_steps(lines: &[Value]) -> Vec<u64> {
    let lines = lines.iter().filter(|line| line["validation"].is_object());
    lines.map(|line| line["step"].as_u64().unwrap()).collect()
}

fn state(recipe: &Recipe, step: u64) -> Value {
    let folder = RunLayout::new(&recipe.run_dir).checkpoints(Stage::Grpo);
    let path = folder.join(format!("step_{step}/trainer/state.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_evaluated_run_that_is_stopped_equals_the_unbroken_one() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // Never better by so much: two evaluations more end the run.
    let sets = [
        "grpo.num_steps=12",
        "grpo.save_every_steps=1",
        "grpo.best_metric=validation_reward",
        "grpo.early_stopping_patience=2",
        "grpo.early_stopping_threshold=100",
    ];
    let unbroken = evaluated(&dir.path().join("unbroken"), &sets);
    finish(&unbroken, Stage::Sft);
    let model = finish(&unbroken, Stage::Grpo);
    let expected = metrics(&unbroken, Stage::Grpo);
    assert_eq!(evaluated_steps(&expected), [2, 4, 6]);
    assert_eq!(expected.len(), 6);
    let validation = &expected[1]["validation"];
    assert_eq!(validation["num_episodes"], 6);
    for key in ["reward", "reward_accuracy", "all_correct", "valid"] {
        assert!(validation[key].is_f64(), "{validation}");
    }
    assert!(validation["format_errors"]["no_answer"].is_u64());
    let last = state(&unbroken, 6);
    assert_eq!(last["stopped_early"], true);
    assert_eq!(last["best"]["evaluations_since"], 2);
    assert_eq!(last["best"]["value"], validation["reward"]);
    assert_eq!(
        last["figures"]["validation_reward"],
        expected[5]["validation"]["reward"]
    );

    let stopped = evaluated(&dir.path().join("stopped"), &sets);
    finish(&stopped, Stage::Sft);
    // Stopped between evaluations, and right after one.
    for stop_after_step in [3, 4, 5] {
        let mut watcher = Watcher {
            stop_after_step: Some(stop_after_step),
            ..Watcher::default()
        };
        let outcome = run(&stopped, Stage::Grpo, Resume::Auto, &mut watcher).unwrap();
        assert!(matches!(outcome, RunOutcome::Stopped { .. }));
    }
    let mut watcher = Watcher::default();
    let outcome = run(&stopped, Stage::Grpo, Resume::Auto, &mut watcher).unwrap();
    let RunOutcome::Finished {
        model: other,
        num_steps,
    } = outcome
    else {
        panic!("nobody asked to stop");
    };
    assert_eq!(num_steps, 6);
    assert!(
        watcher.warnings[0].contains("early stopping after step 6"),
        "{:?}",
        watcher.warnings
    );
    assert_eq!(metrics(&stopped, Stage::Grpo), expected);
    assert_eq!(weights(&other), weights(&model));

    // Done is done.
    let mut watcher = Watcher::default();
    let outcome = run(&stopped, Stage::Grpo, Resume::Auto, &mut watcher).unwrap();
    assert!(matches!(outcome, RunOutcome::Finished { num_steps: 6, .. }));
    assert!(watcher.steps.is_empty());
}

#[test]
fn an_evaluation_changes_nothing_but_the_metrics_and_the_best_checkpoint() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "grpo.eval_temperature=0",
        "grpo.eval_num_problems=2",
        "grpo.save_every_steps=2",
        "grpo.keep_checkpoints=1",
        "grpo.keep_best_checkpoints=1",
        "grpo.best_metric=validation_reward",
    ];
    let evaluated = evaluated(&dir.path().join("with"), &sets);
    finish(&evaluated, Stage::Sft);
    let with = finish(&evaluated, Stage::Grpo);
    let mut lines = metrics(&evaluated, Stage::Grpo);
    assert_eq!(evaluated_steps(&lines), [2, 4, 6]);
    assert_eq!(lines[1]["validation"]["num_episodes"], 4);
    let reward = |step: usize| lines[step - 1]["validation"]["reward"].as_f64().unwrap();
    let best = [2, 4, 6]
        .into_iter()
        .max_by(|a, b| reward(*a).total_cmp(&reward(*b)).then(a.cmp(b)))
        .unwrap();
    let folder = RunLayout::new(&evaluated.run_dir).checkpoints(Stage::Grpo);
    let link = fs::read_link(folder.join("best")).unwrap();
    assert_eq!(link, Path::new(&format!("step_{best}")));

    for line in &mut lines {
        line.as_object_mut().unwrap().remove("validation");
    }
    let plain = recipe(&dir.path().join("without"), &EVALUATED[..4]);
    finish(&plain, Stage::Sft);
    let without = finish(&plain, Stage::Grpo);
    assert_eq!(metrics(&plain, Stage::Grpo), lines);
    assert_eq!(weights(&without), weights(&with));
}

#[test]
fn held_out_loss_ends_sft() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "sft.num_steps=20",
        "sft.eval_every_steps=1",
        "sft.early_stopping_patience=3",
        "sft.early_stopping_threshold=100",
        "grpo.num_steps=1",
    ];
    let recipe = recipe(dir.path(), &sets);
    finish(&recipe, Stage::Sft);
    assert_eq!(metrics(&recipe, Stage::Sft).len(), 4);
    // Finished all the same: `grpo` starts from it.
    finish(&recipe, Stage::Grpo);
}

#[test]
fn a_sample_of_more_problems_than_there_are_is_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = evaluated(dir.path(), &[]);
    finish(&recipe, Stage::Sft);
    let more = common::tiny::sets(&[&["task.mcd.num_validation_problems=9"]]);
    let text = recipe.to_toml();
    let sets = [more, vec!["grpo.eval_num_problems=5".to_owned()]].concat();
    let asked = Recipe::parse(&text, Path::new("tiny.toml"), &sets).unwrap();
    let error = run(&asked, Stage::Grpo, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Setting {
                key: "grpo.eval_num_problems",
                ..
            }
        ),
        "{error}"
    );
}
