//! Whole runs that compute in bf16: what checkpoints hold, stopping and resuming, adapters, and machines without bf16.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;

use asyncthink_checkpoint::RunLayout;
use asyncthink_model::Decoder;
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_torch::cpu_has_bf16_products;
use asyncthink_trainer::{Resume, RunOutcome};
use common::{Watcher, alone, copy_folder, finish, metrics, recipe, run, weights};
use tch::{Device, Kind};

const BF16: &str = "precision={ compute = \"bf16\", allow_slow_bf16 = true }";

/// Sampler and trainer differ by the rounding of activations.
const MISMATCH: &str = "grpo.max_logprob_mismatch=0.5";

fn stop_after(recipe: &Recipe, stage: Stage, step: u64) {
    let mut watcher = Watcher {
        stop_after_step: Some(step),
        ..Watcher::default()
    };
    let outcome = run(recipe, stage, Resume::Auto, &mut watcher).unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped { .. }), "{outcome:?}");
}

fn losses(recipe: &Recipe) -> Vec<f64> {
    let lines = metrics(recipe, Stage::Sft);
    lines
        .iter()
        .map(|line| line["loss"].as_f64().unwrap())
        .collect()
}

#[test]
fn runs_in_bf16_resume_to_the_bit_and_follow_those_in_f32() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        BF16,
        MISMATCH,
        "sft.num_steps=40",
        "sft.save_every_steps=20",
        "grpo.kl_beta=0.01",
        "grpo.num_steps=3",
    ];
    let straight = recipe(&dir.path().join("straight"), &sets);
    let sft = finish(&straight, Stage::Sft);
    let grpo = finish(&straight, Stage::Grpo);
    let steps = metrics(&straight, Stage::Grpo);
    let mismatch = |line: &serde_json::Value| line["logprob_mismatch_max_nats"].as_f64().unwrap();
    assert!(steps.iter().all(|line| mismatch(line) < 0.5));
    assert!(
        steps.iter().any(|line| mismatch(line) > 1e-4),
        "nothing was computed in bf16"
    );

    let broken = recipe(
        &dir.path().join("broken"),
        &[&sets[..], &["save_in_background=always"]].concat(),
    );
    stop_after(&broken, Stage::Sft, 7);
    stop_after(&broken, Stage::Sft, 25);
    assert_eq!(weights(&finish(&broken, Stage::Sft)), weights(&sft));
    assert_eq!(metrics(&broken, Stage::Sft), metrics(&straight, Stage::Sft));
    stop_after(&broken, Stage::Grpo, 1);
    assert_eq!(weights(&finish(&broken, Stage::Grpo)), weights(&grpo));
    assert_eq!(metrics(&broken, Stage::Grpo), steps);

    let exact = recipe(
        &dir.path().join("f32"),
        &["sft.num_steps=40", "sft.save_every_steps=20"],
    );
    finish(&exact, Stage::Sft);
    let (exact, rounded) = (losses(&exact), losses(&straight));
    assert_ne!(exact, rounded);
    let last = |losses: &[f64]| losses[30..].iter().sum::<f64>() / 10.0;
    assert!(
        (last(&exact) / last(&rounded) - 1.0).abs() < 0.05,
        "{exact:?} {rounded:?}"
    );
}

/// How many values of two checkpoints differ, as f32 and rounded to bf16, and how many there are.
fn moved(a: &Path, b: &Path) -> (i64, i64, i64) {
    let [a, b] = [a, b].map(|dir| Decoder::load(dir, Device::Cpu, Kind::Float).unwrap());
    let mut counts = (0, 0, 0);
    for ((_, a), (_, b)) in a.named_parameters().iter().zip(b.named_parameters()) {
        let count = |kind| {
            a.to_kind(kind)
                .ne_tensor(&b.to_kind(kind))
                .sum(Kind::Int64)
                .int64_value(&[])
        };
        counts.0 += count(Kind::Float);
        counts.1 += count(Kind::BFloat16);
        counts.2 += i64::try_from(a.numel()).unwrap();
    }
    counts
}

#[test]
fn checkpoints_hold_f32_weights_that_move_by_less_than_bf16_can_say() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        BF16,
        "sft.num_steps=2",
        "sft.save_every_steps=1",
        "sft.optimizer.learning_rate=1e-6",
        "sft.optimizer.warmup_steps=0",
    ];
    let recipe = recipe(dir.path(), &sets);
    let last = finish(&recipe, Stage::Sft);
    let text = std::fs::read_to_string(last.join("config.json")).unwrap();
    assert!(text.contains("float32"), "{text}");
    let first = RunLayout::new(&recipe.run_dir)
        .checkpoints(Stage::Sft)
        .join("step_1");
    let (in_f32, in_bf16, all) = moved(&first, &last);
    assert!(in_f32 > all / 2, "{in_f32} of {all} have moved");
    assert!(in_bf16 < in_f32 / 10, "{in_bf16} of {in_f32} show in bf16");
}

#[test]
fn adapters_are_trained_in_f32_on_a_base_in_bf16() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let base = finish(
        &recipe(
            &dir.path().join("base"),
            &["sft.num_steps=100", "sft.save_every_steps=100"],
        ),
        Stage::Sft,
    );
    let model = format!(
        "model={{ path = {:?}, lora = {{ rank = 4, alpha = 8 }} }}",
        base.to_str().unwrap()
    );
    let sets = [
        model.as_str(),
        BF16,
        MISMATCH,
        "sft.num_steps=8",
        "grpo.num_steps=4",
    ];
    let straight = recipe(&dir.path().join("straight"), &sets);
    let adapters = |dir: &Path| std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let sft = finish(&straight, Stage::Sft);
    let grpo = finish(&straight, Stage::Grpo);
    let all = losses(&straight);
    assert!(all[7] < all[0], "{all:?}");
    assert!(String::from_utf8_lossy(&adapters(&sft)).contains("\"F32\""));
    let broken = recipe(&dir.path().join("broken"), &sets);
    stop_after(&broken, Stage::Sft, 3);
    assert_eq!(adapters(&finish(&broken, Stage::Sft)), adapters(&sft));
    stop_after(&broken, Stage::Grpo, 2);
    assert_eq!(adapters(&finish(&broken, Stage::Grpo)), adapters(&grpo));
    assert_eq!(
        metrics(&broken, Stage::Grpo),
        metrics(&straight, Stage::Grpo)
    );
}

#[test]
fn a_machine_without_bf16_says_so_and_computes_in_f32() {
    let _alone = alone();
    if cpu_has_bf16_products() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let exact = recipe(&dir.path().join("f32"), &["sft.num_steps=3"]);
    finish(&exact, Stage::Sft);
    let asked = recipe(
        &dir.path().join("asked"),
        &["sft.num_steps=3", "precision.compute=bf16"],
    );
    let mut watcher = Watcher::default();
    run(&asked, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let told = |word: &str| {
        watcher
            .warnings
            .iter()
            .any(|warning| warning.contains(word))
    };
    assert!(
        told("AVX-512 BF16") && told("allow_slow_bf16"),
        "{:?}",
        watcher.warnings
    );
    assert_eq!(metrics(&asked, Stage::Sft), metrics(&exact, Stage::Sft));
}

#[test]
fn another_compute_format_is_another_run() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["sft.num_steps=4", "sft.save_every_steps=2"];
    let exact = recipe(&dir.path().join("f32"), &sets);
    stop_after(&exact, Stage::Sft, 2);
    let changed = recipe(&dir.path().join("bf16"), &[&sets[..], &[BF16]].concat());
    copy_folder(&exact.run_dir.join("sft"), &changed.run_dir.join("sft"));
    let error = run(&changed, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(error.to_string().contains("`precision.compute`"), "{error}");
    let allowed = recipe(
        &dir.path().join("allowed"),
        &[&sets[..], &[BF16, "allow_changed=[\"precision\"]"]].concat(),
    );
    copy_folder(&exact.run_dir.join("sft"), &allowed.run_dir.join("sft"));
    finish(&allowed, Stage::Sft);
}
