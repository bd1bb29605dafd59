//! Losses, estimators, mini-batches and dynamic sampling in whole runs: exact resume, steps without a signal, refills.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;

use asyncthink_checkpoint::TrainerState;
use asyncthink_metrics::Phase;
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{Resume, RunOutcome};
use common::{Watcher, alone, copy_folder, finish, metrics, recipe, run, weights};
use serde_json::Value;

/// Almost everything that `[grpo]` adds, together.
const ALL: [&str; 13] = [
    "grpo.num_mini_batches=2",
    "grpo.num_updates_per_rollout=2",
    "grpo.max_sampling_rounds=3",
    "grpo.logp_old=\"trainer\"",
    "grpo.sampler_correction={ mode = \"sequence_truncate\", max_weight = 1.00001 }",
    "grpo.loss={ gspo = {} }",
    "grpo.kl_beta=0.01",
    "grpo.kl_in=\"reward\"",
    "grpo.entropy_coefficient=0.01",
    "grpo.mask_truncated=true",
    "grpo.advantage=\"rloo\"",
    "grpo.advantage_group=\"role\"",
    "grpo.reward.overlong_buffer_tokens=20",
];

/// Recipes over one model that knows the format now and then, so that some groups have a signal.
fn with_sft(dir: &Path, names: &[&str], sets: &[&str]) -> Vec<Recipe> {
    let sets = [&["sft.num_steps=120", "sft.save_every_steps=120"][..], sets].concat();
    let recipes: Vec<Recipe> = names
        .iter()
        .map(|name| recipe(&dir.join(name), &sets))
        .collect();
    finish(&recipes[0], Stage::Sft);
    for other in &recipes[1..] {
        copy_folder(&recipes[0].run_dir.join("sft"), &other.run_dir.join("sft"));
    }
    recipes
}

fn number(line: &Value, key: &str) -> f64 {
    line[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} in {line}"))
}

#[test]
fn a_run_with_all_estimators_continues_as_if_it_had_never_stopped() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipes = with_sft(dir.path(), &["straight", "broken"], &ALL);
    let [straight, broken] = &recipes[..] else {
        unreachable!("two names");
    };
    let model = finish(straight, Stage::Grpo);
    let expected = metrics(straight, Stage::Grpo);
    assert_eq!(expected.len(), 6);
    let some = |key: &str, holds: &dyn Fn(&Value) -> bool| {
        assert!(expected.iter().any(|line| holds(&line[key])), "{key}");
    };
    some("sampling_rounds", &|rounds| rounds.as_u64() > Some(1));
    some("num_groups", &|groups| groups.as_u64() > Some(0));
    some("reward_penalty", &|penalty| penalty.as_f64() != Some(0.0));
    some("kl_reference", &|kl| kl.as_f64() > Some(0.0));
    some("effective_sample_size", &|size| size.as_f64() > Some(0.9));
    some("gradient_share", &|share| {
        share["organizer"].as_f64() > Some(0.0) && share["worker"].is_number()
    });
    some("loss_metrics", &|of_loss| {
        of_loss["truncated_share"].as_f64() > Some(0.0)
    });

    for (stop_after_step, stop_in_phase) in [
        (Some(1), None),
        (None, Some((Phase::Rollout, 30))),
        (None, Some((Phase::Train, 1))),
        (Some(5), None),
    ] {
        let mut watcher = Watcher {
            stop_after_step,
            stop_in_phase,
            ..Watcher::default()
        };
        let outcome = run(broken, Stage::Grpo, Resume::Auto, &mut watcher).unwrap();
        assert!(matches!(outcome, RunOutcome::Stopped { .. }), "{outcome:?}");
    }
    let resumed = finish(broken, Stage::Grpo);
    assert_eq!(metrics(broken, Stage::Grpo), expected);
    assert_eq!(weights(&resumed), weights(&model));
}

#[test]
fn steps_without_a_signal_leave_weights_and_moments_alone() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // A model that has learnt nothing breaks every episode, so all rewards are equal.
    let sets = [
        "sft.num_steps=4",
        "grpo.num_steps=2",
        "grpo.optimizer.weight_decay=0.5",
    ];
    let recipe = recipe(dir.path(), &sets);
    let before = weights(&finish(&recipe, Stage::Sft));
    let model = finish(&recipe, Stage::Grpo);
    for line in metrics(&recipe, Stage::Grpo) {
        assert_eq!(line["num_skipped_updates"], 1, "{line}");
        assert_eq!(line["num_trained_tokens"], 0, "{line}");
        assert!(line["gradient_share"]["organizer"].is_null(), "{line}");
    }
    assert_eq!(weights(&model), before);
    assert_eq!(TrainerState::read(&model).unwrap().num_updates, 0);
}

#[test]
fn groups_without_a_signal_are_replaced_within_the_rounds() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let names = ["once", "refilled"];
    let once = with_sft(dir.path(), &names, &[]);
    let refilled = recipe(
        &dir.path().join("refilled"),
        &[
            "sft.num_steps=120",
            "sft.save_every_steps=120",
            "grpo.max_sampling_rounds=4",
        ],
    );
    finish(&once[0], Stage::Grpo);
    finish(&refilled, Stage::Grpo);
    let (once, refilled) = (
        metrics(&once[0], Stage::Grpo),
        metrics(&refilled, Stage::Grpo),
    );
    assert!(once[0]["sampling_rounds"].is_null(), "{}", once[0]);
    let mut num_refilled = 0;
    for line in &refilled {
        let (rounds, groups) = (number(line, "sampling_rounds"), number(line, "num_groups"));
        let sampled = number(line, "num_episodes") / 4.0;
        assert!(
            groups <= 2.0 && (groups - 2.0).abs() < 1e-9 || rounds >= 4.0,
            "{line}"
        );
        assert!(
            (groups + number(line, "constant_groups") - sampled).abs() < 1e-9,
            "{line}"
        );
        num_refilled += u32::from(rounds > 1.0 && groups > 0.0);
    }
    assert!(num_refilled > 0, "the test must test something");
    // The first round of the first step is that of a run without refills.
    assert_eq!(once[0]["epoch"], refilled[0]["epoch"]);
}

#[test]
fn mini_batches_are_an_update_each() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "grpo.num_steps=2",
        "grpo.prompts_per_step=3",
        "grpo.num_mini_batches=2",
        "grpo.num_updates_per_rollout=2",
        // Every row has a gradient.
        "grpo.entropy_coefficient=0.001",
    ];
    let recipe = with_sft(dir.path(), &["run"], &sets).remove(0);
    let model = finish(&recipe, Stage::Grpo);
    let lines = metrics(&recipe, Stage::Grpo);
    for line in &lines {
        assert_eq!(line["num_skipped_updates"], 0, "{line}");
        // Mini-batches together hold every decoded token once.
        assert_eq!(line["num_trained_tokens"], line["decoded_tokens"], "{line}");
        assert!(number(line, "logprob_mismatch_max_nats") < 1e-4, "{line}");
    }
    assert_eq!(TrainerState::read(&model).unwrap().num_updates, 8);
}
