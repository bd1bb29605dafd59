//! The same figures, weights and episodes whatever the number of ranks and what they share out.

use std::path::{Path, PathBuf};

use asyncthink_checkpoint::RunLayout;
use asyncthink_recipe::{Recipe, Stage};
use serde_json::Value;

use crate::common::{alone, copy_folder, metrics, weights};
use crate::processes::{model_of, recipe, run_ranks};

fn figure(line: &Value, key: &str) -> Option<f64> {
    line[key].as_f64()
}

/// Compares the named figures of all lines.
fn assert_close(expected: &[Value], got: &[Value], keys: &[&str], bound: f64, what: &str) {
    assert_eq!(expected.len(), got.len(), "{what}");
    let mut worst: f64 = 0.0;
    for (a, b) in expected.iter().zip(got) {
        for key in keys {
            let (a, b) = (figure(a, key), figure(b, key));
            let (Some(a), Some(b)) = (a, b) else {
                assert_eq!(a, b, "{what}: {key}");
                continue;
            };
            let difference = (a - b).abs() / a.abs().max(1e-3);
            worst = worst.max(difference);
            assert!(difference < bound, "{what}: `{key}` {a} and {b}");
        }
    }
    eprintln!("{what}: largest relative difference {worst:.1e}");
}

const WHOLE: &str = "distributed.shard=optimizer";
const PARTS: &str = "distributed.shard=full";

/// Numbers of ranks, and what they share out.
const CASES: [(usize, &str); 5] = [(2, WHOLE), (4, WHOLE), (1, PARTS), (2, PARTS), (4, PARTS)];

#[test]
fn sft_is_the_same_with_any_number_of_ranks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "sft.optimizer.learning_rate=1e-3",
        "distributed.bucket_mb=1",
    ];
    let single = recipe(&dir.path().join("1"), &sets);
    run_ranks(&single, Stage::Sft, 1, None);
    let expected = metrics(&single, Stage::Sft);
    let keys = [
        "loss",
        "grad_norm",
        "held_out_loss",
        "learning_rate",
        "num_trained_tokens",
    ];
    for (world_size, shard) in CASES {
        let what = format!("sft, {world_size} ranks, {shard}");
        let many = recipe(&dir.path().join(&what), &[&sets[..], &[shard]].concat());
        run_ranks(&many, Stage::Sft, world_size, None);
        let got = metrics(&many, Stage::Sft);
        assert_close(&expected, &got, &keys, 1e-5, &what);
    }
}

/// At a recipe's own rate every update carries the rounding of its step into the weights, and differences grow.
#[test]
fn rounding_stays_that_of_one_step_where_weights_hardly_move() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["sft.optimizer.learning_rate=1e-6", "sft.num_steps=20"];
    let with = |name: &str, threads: &str| {
        recipe(&dir.path().join(name), &[&sets[..], &[threads]].concat())
    };
    let single = with("single", "num_threads=1");
    run_ranks(&single, Stage::Sft, 1, None);
    let expected = metrics(&single, Stage::Sft);
    assert_eq!(expected.len(), 20);
    for (world_size, threads) in [
        (1, "num_threads=2"),
        (2, "num_threads=1"),
        (4, "num_threads=1"),
    ] {
        let what = format!("sft at 1e-6, {world_size} ranks, {threads}");
        let other = with(&what, threads);
        run_ranks(&other, Stage::Sft, world_size, None);
        let keys = ["loss", "grad_norm", "held_out_loss"];
        assert_close(&expected, &metrics(&other, Stage::Sft), &keys, 1e-5, &what);
    }
}

#[test]
fn grpo_is_the_same_with_any_number_of_ranks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "sft.num_steps=300",
        "sft.save_every_steps=300",
        "grpo.kl_beta=0.01",
        // Rounding decides a sampled token sooner or later, and what follows is another run.
        "grpo.num_steps=3",
        "grpo.prompts_per_step=5",
        "grpo.num_updates_per_rollout=2",
        "grpo.optimizer.learning_rate=1e-4",
        // Fewer than ranks, so that one has none.
        "task.mcd.num_validation_problems=3",
        "task.mcd.validation_target_fraction=0.2",
        "grpo.eval_every_steps=2",
    ];
    let single = recipe(&dir.path().join("1"), &sets);
    run_ranks(&single, Stage::Sft, 1, None);
    let begin = copy_of_run(&single, &dir.path().join("begin"));
    run_ranks(&single, Stage::Grpo, 1, None);
    let expected = metrics(&single, Stage::Grpo);
    let episodes = |recipe: &Recipe| {
        let path = RunLayout::new(&recipe.run_dir).episodes(Stage::Grpo, 3);
        let rows = asyncthink_data::parquet::read_episodes(&path).unwrap();
        rows.into_iter()
            .map(|row| (row.prompt_index, row.sample_index, row.text))
            .collect::<Vec<_>>()
    };
    // Losses are differences of small numbers: their rounding is seen against that of the gradient.
    let keys = [
        "grad_norm",
        "reward",
        "eta_ratio",
        "entropy",
        "sampled_nll_nats",
        "num_rows",
        "constant_groups",
        "num_trained_tokens",
        "num_episodes",
    ];
    for (world_size, shard) in CASES {
        let what = format!("grpo, {world_size} ranks, {shard}");
        let sets = [
            &sets[..],
            &[shard, "distributed.micro_batches_per_gather=2"],
        ]
        .concat();
        let many = recipe(&dir.path().join(&what), &sets);
        copy_folder(&begin, &many.run_dir.join("sft"));
        run_ranks(&many, Stage::Grpo, world_size, None);
        let got = metrics(&many, Stage::Grpo);
        assert_close(&expected, &got, &keys, 1e-5, &what);
        assert_eq!(episodes(&many), episodes(&single), "{what}");
        let of_validation = [
            "reward",
            "reward_accuracy",
            "decoded_tokens",
            "num_episodes",
        ];
        let (expected, got) = (validations(&expected), validations(&got));
        assert_eq!(expected.len(), 2);
        assert_eq!(expected[0]["num_episodes"], 3);
        assert_close(&expected, &got, &of_validation, 1e-5, &what);
    }
}

/// Mini-batches, refills, corrections and terms in one run; groups and rows lie elsewhere with every number of ranks.
#[test]
fn estimators_are_the_same_with_any_number_of_ranks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "sft.num_steps=120",
        "sft.save_every_steps=120",
        "grpo.num_steps=2",
        "grpo.prompts_per_step=3",
        "grpo.num_mini_batches=2",
        "grpo.num_updates_per_rollout=2",
        "grpo.max_sampling_rounds=3",
        "grpo.logp_old=\"trainer\"",
        "grpo.sampler_correction={ mode = \"sequence_mask\", max_weight = 1.5, min_weight = 0.5 }",
        "grpo.loss={ gspo = {} }",
        "grpo.kl_beta=0.01",
        "grpo.kl_in=\"reward\"",
        "grpo.entropy_coefficient=0.01",
        "grpo.mask_truncated=true",
        "grpo.advantage_group=\"role\"",
        "grpo.optimizer.learning_rate=1e-5",
    ];
    let single = recipe(&dir.path().join("1"), &sets);
    run_ranks(&single, Stage::Sft, 1, None);
    let begin = copy_of_run(&single, &dir.path().join("begin"));
    run_ranks(&single, Stage::Grpo, 1, None);
    let expected = metrics(&single, Stage::Grpo);
    assert!(
        expected
            .iter()
            .any(|line| figure(line, "sampling_rounds") > Some(1.0))
    );
    let keys = [
        "grad_norm",
        "reward",
        "truncated",
        "entropy",
        "effective_sample_size",
        "num_rows",
        "num_groups",
        "sampling_rounds",
        "constant_groups",
        "num_trained_tokens",
        "num_episodes",
        "num_skipped_updates",
    ];
    for (world_size, shard) in [(2, WHOLE), (3, WHOLE), (2, PARTS)] {
        let what = format!("estimators, {world_size} ranks, {shard}");
        let sets = [&sets[..], &[shard]].concat();
        let many = recipe(&dir.path().join(&what), &sets);
        copy_folder(&begin, &many.run_dir.join("sft"));
        run_ranks(&many, Stage::Grpo, world_size, None);
        let got = metrics(&many, Stage::Grpo);
        assert_close(&expected, &got, &keys, 1e-5, &what);
        for (a, b) in expected.iter().zip(&got) {
            let share = |line: &Value| line["gradient_share"]["worker"].as_f64();
            // Differences of log-probabilities that are nearly equal: rounding is seen against those.
            let penalty = |line: &Value| figure(line, "reward_penalty");
            let kl = |line: &Value| figure(line, "kl_reference");
            for value in [&share as &dyn Fn(&Value) -> Option<f64>, &penalty, &kl] {
                let difference = value(a).unwrap_or(0.0) - value(b).unwrap_or(0.0);
                assert!(difference.abs() < 1e-5, "{what}: {a} {b}");
            }
        }
    }
}

/// What the evaluations during a run measured.
fn validations(lines: &[Value]) -> Vec<Value> {
    let lines = lines.iter().map(|line| line["validation"].clone());
    lines.filter(Value::is_object).collect()
}

/// Keeps what `sft` left, for other runs to begin with.
fn copy_of_run(recipe: &Recipe, to: &Path) -> PathBuf {
    copy_folder(&recipe.run_dir.join("sft"), to);
    to.to_owned()
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["sft.optimizer.learning_rate=1e-3"];
    let straight = recipe(&dir.path().join("straight"), &sets);
    run_ranks(&straight, Stage::Sft, 1, None);
    let expected = metrics(&straight, Stage::Sft);
    let keys = ["loss", "grad_norm", "held_out_loss"];
    for (saved, resumed) in [(WHOLE, PARTS), (PARTS, WHOLE), (PARTS, PARTS)] {
        let with = |shard| [&sets[..], &[shard]].concat();
        let dir = dir.path().join(format!("{saved} {resumed}"));
        let begun = recipe(&dir.join("begun"), &with(saved));
        run_ranks(&begun, Stage::Sft, 4, Some(5));
        for world_size in [1, 2, 3] {
            let what = format!("from 4 ranks, {saved}, to {world_size}, {resumed}");
            let resumed = recipe(&dir.join(world_size.to_string()), &with(resumed));
            copy_folder(&begun.run_dir.join("sft"), &resumed.run_dir.join("sft"));
            run_ranks(&resumed, Stage::Sft, world_size, None);
            assert_close(
                &expected,
                &metrics(&resumed, Stage::Sft),
                &keys,
                1e-5,
                &what,
            );
        }
        // The same number of ranks, stopped and not: to the bit.
        let unbroken = recipe(&dir.join("unbroken"), &with(saved));
        run_ranks(&unbroken, Stage::Sft, 4, None);
        run_ranks(&begun, Stage::Sft, 4, None);
        assert_eq!(metrics(&begun, Stage::Sft), metrics(&unbroken, Stage::Sft));
        assert_eq!(
            weights(&model_of(&begun, Stage::Sft)),
            weights(&model_of(&unbroken, Stage::Sft))
        );
    }
}

/// Adapters on a base that is whole on every rank, or shared out, in f32 and in bf16.
#[test]
fn adapters_are_the_same_with_any_number_of_ranks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let base = recipe(
        &dir.path().join("base"),
        &["sft.num_steps=40", "sft.save_every_steps=40"],
    );
    run_ranks(&base, Stage::Sft, 1, None);
    let model = model_of(&base, Stage::Sft);
    let model = format!(
        "model={{ path = {:?}, lora = {{ rank = 4, alpha = 8 }} }}",
        model.to_str().unwrap()
    );
    let sets = [
        model.as_str(),
        "sft.num_steps=6",
        "sft.optimizer.learning_rate=1e-3",
    ];
    let single = recipe(&dir.path().join("1"), &sets);
    run_ranks(&single, Stage::Sft, 1, None);
    let expected = metrics(&single, Stage::Sft);
    let keys = ["loss", "grad_norm", "held_out_loss", "num_trained_tokens"];
    for (world_size, shard) in [(2, WHOLE), (1, PARTS), (2, PARTS)] {
        let what = format!("adapters, {world_size} ranks, {shard}");
        let many = recipe(&dir.path().join(&what), &[&sets[..], &[shard]].concat());
        run_ranks(&many, Stage::Sft, world_size, None);
        assert_close(&expected, &metrics(&many, Stage::Sft), &keys, 1e-5, &what);
    }
    // Stopped and not, with shares and a base in bf16: to the bit.
    let bf16 = "precision={ compute = \"bf16\", allow_slow_bf16 = true }";
    let sets = [&sets[..], &[PARTS, bf16, "sft.save_every_steps=2"]].concat();
    let unbroken = recipe(&dir.path().join("unbroken"), &sets);
    run_ranks(&unbroken, Stage::Sft, 2, None);
    let broken = recipe(&dir.path().join("broken"), &sets);
    run_ranks(&broken, Stage::Sft, 2, Some(3));
    run_ranks(&broken, Stage::Sft, 2, None);
    assert_eq!(metrics(&broken, Stage::Sft), metrics(&unbroken, Stage::Sft));
}

/// bf16 rounds each micro-batch's gradient of a layer; what is cut the same way is the same whatever the number of ranks.
#[test]
fn bf16_is_the_same_with_any_number_of_ranks_up_to_its_rounding() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "precision={ compute = \"bf16\", allow_slow_bf16 = true }",
        "sft.optimizer.learning_rate=1e-4",
        "sft.num_steps=5",
    ];
    let single = recipe(&dir.path().join("1"), &sets);
    run_ranks(&single, Stage::Sft, 1, None);
    let expected = metrics(&single, Stage::Sft);
    for (world_size, shard) in [(2, WHOLE), (4, WHOLE), (2, PARTS), (4, PARTS)] {
        let what = format!("bf16, {world_size} ranks, {shard}");
        let many = recipe(&dir.path().join(&what), &[&sets[..], &[shard]].concat());
        run_ranks(&many, Stage::Sft, world_size, None);
        let got = metrics(&many, Stage::Sft);
        assert_close(&expected, &got, &["loss", "held_out_loss"], 2e-3, &what);
        assert_close(&expected, &got, &["grad_norm"], 2e-2, &what);
    }
}
