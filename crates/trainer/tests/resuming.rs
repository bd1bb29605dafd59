//! Going on from a checkpoint with a change that is allowed, and after a restart by a launcher.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use asyncthink_checkpoint::{Error as CheckpointError, RunLayout};
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{Attempt, Error, Resume, RunOptions};
use common::{Watcher, alone, finish, metrics, recipe, run, run_with};

#[test]
fn a_run_goes_on_with_changes_that_are_allowed_by_name() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = |sets: &[&str]| recipe(dir.path(), sets);
    let resume = |recipe: &Recipe| {
        let mut watcher = Watcher::default();
        run(recipe, Stage::Sft, Resume::Auto, &mut watcher).map(|_| watcher)
    };
    finish(&recipe(&["sft.num_steps=4"]), Stage::Sft);

    let changed = ["sft.num_steps=6", "sft.optimizer.learning_rate=1e-4"];
    let error = resume(&recipe(&changed)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Checkpoint(CheckpointError::RecipeChanged { .. })
        ),
        "{error}"
    );
    let hint = error.hint().unwrap().into_owned();
    let list = r#"allow_changed=["sft.num_steps", "sft.optimizer.learning_rate"]"#;
    assert!(hint.contains(list), "{hint}");
    let allowed = [&changed[..], &[list]].concat();
    let watcher = resume(&recipe(&allowed)).unwrap();
    assert_eq!(watcher.steps, [5, 6]);
    assert_eq!(watcher.warnings.len(), 2);
    assert!(watcher.warnings[0].contains("`sft.num_steps` is 6, was 4"));
    let learning_rate = "`sft.optimizer.learning_rate` is 0.0001, was 0.005";
    assert!(
        watcher.warnings[1].contains(learning_rate),
        "{:?}",
        watcher.warnings
    );

    // The checkpoint is of the new recipe: that is no change any more, and the old one is.
    let watcher = resume(&recipe(&changed)).unwrap();
    assert!(watcher.warnings.is_empty() && watcher.steps.is_empty());
    assert!(resume(&recipe(&["sft.num_steps=6"])).is_err());

    let other_data = [&changed[1..], &["sft.num_steps=8", "synth.num_traces=40"]].concat();
    let only_steps = [&other_data[..], &["allow_changed=[\"sft.num_steps\"]"]].concat();
    let error = resume(&recipe(&only_steps)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Checkpoint(CheckpointError::DatasetChanged { .. })
        ),
        "{error}"
    );
    let hint = error.hint().unwrap();
    assert!(hint.contains(r#"allow_changed=["dataset"]"#), "{hint}");
    let both = [&other_data[..], &["allow_changed=[\"sft\", \"dataset\"]"]].concat();
    let watcher = resume(&recipe(&both)).unwrap();
    assert_eq!(watcher.steps, [7, 8]);
    assert!(
        watcher.warnings[1].contains("`dataset` is "),
        "{:?}",
        watcher.warnings
    );
    assert!(resume(&recipe(&other_data)).unwrap().warnings.is_empty());
}

#[test]
fn a_later_attempt_of_a_launch_does_not_begin_anew() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &["sft.num_steps=6", "sft.save_every_steps=2"]);
    let first_step_2 = RunLayout::new(&recipe.run_dir)
        .checkpoints(Stage::Sft)
        .join("step_2");
    let attempt = |resume: &Resume, launcher: &str, num_before, stop_after_step| {
        let options = RunOptions {
            resume: resume.clone(),
            attempt: Some(Attempt {
                launcher: launcher.to_owned(),
                may_be_later: num_before > 0,
            }),
            ..RunOptions::default()
        };
        let mut watcher = Watcher {
            stop_after_step,
            ..Watcher::default()
        };
        run_with(&recipe, Stage::Sft, &options, &mut watcher).unwrap();
        watcher
    };
    finish(&recipe, Stage::Sft);
    let expected = metrics(&recipe, Stage::Sft);

    let first = attempt(&Resume::Never, "a", 0, Some(3));
    assert!(first.warnings[0].contains("sft.old-1"));
    let second = attempt(&Resume::Never, "a", 1, None);
    assert!(second.warnings.is_empty(), "{:?}", second.warnings);
    assert_eq!(second.steps, [4, 5, 6]);
    assert_eq!(metrics(&recipe, Stage::Sft), expected);

    // A launcher that does not count its attempts.
    let uncounted = attempt(&Resume::Never, "d", 1, Some(3));
    assert!(uncounted.warnings[0].contains("sft.old-2"));
    assert_eq!(attempt(&Resume::Never, "d", 1, None).steps, [4, 5, 6]);

    // Its first attempt never came so far as to begin.
    let other = attempt(&Resume::Never, "b", 1, Some(3));
    assert!(other.warnings[0].contains("sft.old-3"));
    assert_eq!(other.steps, [1, 2, 3]);

    // The same where the launch was to begin at a checkpoint.
    let from = Resume::From(first_step_2);
    assert_eq!(attempt(&from, "c", 0, Some(5)).steps, [3, 4, 5]);
    assert_eq!(attempt(&from, "c", 1, None).steps, [6]);
    assert_eq!(metrics(&recipe, Stage::Sft), expected);
}
