//! Run folders that people have touched: edited, copied, and with checkpoints of other runs in them.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};

use asyncthink_checkpoint::{Checkpoint, Error as CheckpointError, RunLayout};
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{Error, Resume};
use common::{Watcher, alone, copy_folder, finish, metrics, recipe, run, weights};
use fs_err as fs;

const SHORT: [&str; 3] = [
    "sft.num_steps=6",
    "sft.save_every_steps=2",
    "sft.eval_every_steps=100",
];

fn checkpoints(recipe: &Recipe) -> PathBuf {
    RunLayout::new(&recipe.run_dir).checkpoints(Stage::Sft)
}

/// Runs `sft` to its end and gives what was said and done.
fn again(recipe: &Recipe) -> Watcher {
    let mut watcher = Watcher::default();
    run(recipe, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    watcher
}

fn link(recipe: &Recipe, name: &str) -> PathBuf {
    fs::read_link(checkpoints(recipe).join(name)).unwrap()
}

#[test]
fn an_edited_text_file_sends_no_run_back() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &SHORT);
    let model = finish(&recipe, Stage::Sft);
    let (expected, expected_weights) = (metrics(&recipe, Stage::Sft), weights(&model));
    for file in ["README.md", "generation_config.json", "asyncthink.json"] {
        let path = model.join(file);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push('\n');
        fs::write(path, &text).unwrap();
        let watcher = again(&recipe);
        assert!(watcher.steps.is_empty());
        assert_eq!(watcher.warnings.len(), 1);
        let warning = &watcher.warnings[0];
        assert!(
            warning.contains("have changed") && warning.contains(&format!("`{file}`: ")),
            "{warning}"
        );
        assert_eq!(fs::read_to_string(model.join(file)).unwrap(), text);
    }
    assert_eq!(weights(&model), expected_weights);
    assert_eq!(metrics(&recipe, Stage::Sft), expected);
}

#[test]
fn a_checkpoint_that_a_run_goes_back_behind_is_kept_with_its_metrics() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &SHORT);
    let model = finish(&recipe, Stage::Sft);
    let expected = metrics(&recipe, Stage::Sft);
    let log = RunLayout::new(&recipe.run_dir).metrics(Stage::Sft);
    let before = fs::read(&log).unwrap();
    // To the first step that is there, with another learning rate from there on.
    let from = Resume::From(checkpoints(&recipe).join("step_4"));
    let mut watcher = Watcher::default();
    run(&recipe, Stage::Sft, from, &mut watcher).unwrap();
    assert_eq!(watcher.steps, [5, 6]);
    let aside = checkpoints(&recipe).join("set-aside-step_6");
    assert!(watcher.warnings[0].contains("is set aside as `set-aside-step_6`"));
    assert!(Checkpoint::open(&aside).is_ok());
    assert_eq!(weights(&aside), weights(&model));
    assert_eq!(fs::read(aside.join("metrics.jsonl")).unwrap(), before);

    // Under whatever name, it can be gone on from: as a run of its own.
    let mut watcher = Watcher::default();
    run(&recipe, Stage::Sft, Resume::From(aside), &mut watcher).unwrap();
    assert!(watcher.steps.is_empty() && watcher.warnings[0].contains("sft.old-1"));
    let old = recipe.run_dir.join("sft.old-1");
    assert!(Checkpoint::open(&old.join("checkpoints/set-aside-step_6")).is_ok());
    assert_eq!(expected.len(), 6);
    assert_eq!(
        fs::read_to_string(old.join("metrics.jsonl"))
            .unwrap()
            .lines()
            .count(),
        6
    );
}

#[test]
fn a_copied_run_folder_goes_on_whatever_became_of_its_links() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        &SHORT[..],
        &["sft.keep_best_checkpoints=1", "sft.best_metric=loss"],
    ]
    .concat();
    let original = recipe(dir.path(), &sets);
    let mut watcher = Watcher {
        stop_after_step: Some(4),
        ..Watcher::default()
    };
    run(&original, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let best = link(&original, "best");
    let copy_of = |name: &str, change: &dyn Fn(&Path)| {
        let copy = recipe(&dir.path().join(name), &sets);
        copy_folder(&original.run_dir, &copy.run_dir);
        change(&checkpoints(&copy));
        copy
    };
    let plain = copy_of("plain", &|_| {});
    finish(&plain, Stage::Sft);
    let (expected, model) = (metrics(&plain, Stage::Sft), link(&plain, "latest"));
    let without = |checkpoints: &Path| {
        fs::remove_file(checkpoints.join("latest")).unwrap();
        fs::remove_file(checkpoints.join("best")).unwrap();
    };
    let followed = |checkpoints: &Path| {
        for name in ["latest", "best"] {
            let link = checkpoints.join(name);
            let target = link.canonicalize().unwrap();
            fs::remove_file(&link).unwrap();
            copy_folder(&target, &link);
        }
    };
    for (name, change) in [
        ("without", &without as &dyn Fn(&Path)),
        ("followed", &followed),
    ] {
        let copy = copy_of(name, change);
        let watcher = again(&copy);
        assert_eq!(watcher.steps, [5, 6], "{name}");
        assert!(watcher.warnings.is_empty(), "{:?}", watcher.warnings);
        assert_eq!(metrics(&copy, Stage::Sft), expected);
        assert_eq!(link(&copy, "latest"), model);
        assert_eq!(link(&copy, "best"), link(&plain, "best"));
    }
    // Who only reads finds the model too.
    let copy = copy_of("read", &without);
    let newest = RunLayout::new(&copy.run_dir).latest_model(Stage::Sft);
    assert_eq!(newest, checkpoints(&copy).join("step_4"));
    assert!(best.to_str().unwrap().starts_with("step_"));
}

#[test]
fn a_checkpoint_of_another_run_in_the_folder_harms_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let first = recipe(dir.path(), &SHORT);
    let mut watcher = Watcher {
        stop_after_step: Some(4),
        ..Watcher::default()
    };
    run(&first, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let other = recipe(
        &dir.path().join("other"),
        &[&SHORT[..], &["seed=4"]].concat(),
    );
    let foreign = finish(&other, Stage::Sft);
    let folder = checkpoints(&first);
    for name in ["step_99999", "step_1", "step_4_backup"] {
        copy_folder(&foreign, &folder.join(name));
    }
    let watcher = again(&first);
    assert_eq!(watcher.steps, [5, 6]);
    assert_eq!(watcher.warnings.len(), 1);
    assert!(watcher.warnings[0].contains("set-aside-step_99999"));
    for name in [
        "step_1",
        "step_4",
        "step_6",
        "step_4_backup",
        "set-aside-step_99999",
    ] {
        assert!(Checkpoint::open(&folder.join(name)).is_ok(), "{name}");
    }
}

#[test]
fn checkpoints_that_are_gone_are_said() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &SHORT);
    let model = finish(&recipe, Stage::Sft);
    let expected = weights(&model);
    // A file of an older one is nothing to a run that has a newer one.
    fs::remove_file(checkpoints(&recipe).join("step_4/model.safetensors")).unwrap();
    let watcher = again(&recipe);
    assert!(watcher.steps.is_empty() && watcher.warnings.is_empty());

    fs::remove_dir_all(&model).unwrap();
    let error = run(&recipe, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    let Error::Checkpoint(CheckpointError::NoReadableCheckpoint { newest, .. }) = &error else {
        panic!("{error}")
    };
    assert!(newest.to_string().contains("which `latest` names, is gone"));
    assert!(error.is_input() && error.hint().unwrap().contains("--resume never"));
    run(&recipe, Stage::Sft, Resume::Never, &mut Watcher::default()).unwrap();
    assert_eq!(weights(&model), expected);

    // The run's folder may have another name.
    fs::remove_dir_all(checkpoints(&recipe).join("step_6")).unwrap();
    let moved = dir.path().join("moved");
    fs::rename(&recipe.run_dir, moved.join("run").parent().unwrap()).unwrap();
    let set = format!("run_dir={}", moved.display());
    let sets = common::tiny::sets(&[
        &common::tiny::TRAINING,
        &common::SETS,
        &[set.as_str()],
        &SHORT,
    ]);
    let moved = Recipe::parse(common::tiny::TINY, Path::new("tiny.toml"), &sets).unwrap();
    let watcher = again(&moved);
    assert_eq!(watcher.steps, [5, 6]);
    assert!(watcher.warnings[0].contains("is gone; going back"));
}

#[test]
fn a_folder_that_cannot_be_written_is_found_before_anything_is_done() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    for in_the_way in ["sft", "sft/checkpoints", "sft/metrics.jsonl", ".sft.lock"] {
        let recipe = recipe(&dir.path().join(in_the_way.replace('/', "_")), &SHORT);
        let path = recipe.run_dir.join(in_the_way);
        if in_the_way.contains('.') {
            fs::create_dir_all(&path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "a file").unwrap();
        }
        let mut watcher = Watcher::default();
        let error = run(&recipe, Stage::Sft, Resume::Auto, &mut watcher).unwrap_err();
        assert!(matches!(error, Error::RunFolder { .. }), "{error}");
        assert!(error.to_string().contains(in_the_way), "{error}");
        assert!(error.is_input() && error.hint().is_some());
        assert!(watcher.steps.is_empty());
    }
}
