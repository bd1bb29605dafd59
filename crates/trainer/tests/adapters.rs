//! Both stages on a model folder with low-rank adapters: what is trained, saved, resumed and sampled from.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;

use asyncthink_checkpoint::{Error as CheckpointError, RunLayout};
use asyncthink_model::{Decoder, Precision, PretrainedModel, Segments};
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{Error, Resume, RunOutcome};
use common::{Watcher, alone, copy_folder, finish, metrics, recipe, run};
use fs_err as fs;
use tch::{Device, Kind, Tensor};

/// A recipe in `dir` that puts adapters on the model in `base`, with problems and pairs made.
fn adapted(dir: &Path, base: &Path, sets: &[&str]) -> Recipe {
    let model = format!(
        "model={{ path = {:?}, lora = {{ rank = 4, alpha = 8 }} }}",
        base.to_str().unwrap()
    );
    recipe(dir, &[&[model.as_str()], sets].concat())
}

/// A model that has learnt the format.
fn base_model(dir: &Path) -> std::path::PathBuf {
    let sets = ["sft.num_steps=200", "sft.save_every_steps=200"];
    finish(&recipe(dir, &sets), Stage::Sft)
}

fn adapter_bytes(model: &Path) -> Vec<u8> {
    fs::read(model.join("adapter_model.safetensors")).unwrap()
}

fn stop_after(recipe: &Recipe, stage: Stage, step: u64) {
    let mut watcher = Watcher {
        stop_after_step: Some(step),
        ..Watcher::default()
    };
    let outcome = run(recipe, stage, Resume::Auto, &mut watcher).unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped { .. }), "{outcome:?}");
}

#[test]
fn adapters_are_trained_saved_resumed_and_merged_in_both_stages() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let base = base_model(&dir.path().join("base"));
    let base_bytes = fs::read(base.join("model.safetensors")).unwrap();

    // The bound on the mismatch (1e-4 nats) is checked at each step: sampling is from merged weights, training is not.
    let sets = [
        "sft.num_steps=8",
        "grpo.kl_beta=0.01",
        "model.lora.save_merged=true",
        "grpo.final_dtype=bf16",
    ];
    let straight = adapted(&dir.path().join("straight"), &base, &sets);
    let sft = finish(&straight, Stage::Sft);
    let grpo = finish(&straight, Stage::Grpo);
    let losses = metrics(&straight, Stage::Sft);
    assert!(losses[7]["loss"].as_f64() < losses[0]["loss"].as_f64());
    assert_ne!(
        adapter_bytes(&sft),
        adapter_bytes(&grpo),
        "the second stage goes on from the first one's adapters"
    );
    assert!(!grpo.join("model.safetensors").exists());
    assert_eq!(
        fs::read(base.join("model.safetensors")).unwrap(),
        base_bytes
    );
    let steps = metrics(&straight, Stage::Grpo);
    assert!(
        steps
            .iter()
            .all(|line| line["logprob_mismatch_max_nats"].as_f64() < Some(1e-4))
    );
    assert!(
        steps
            .iter()
            .any(|line| line["grad_norm"].as_f64() > Some(0.0))
    );

    let in_background = [&sets[..], &["save_in_background=always"]].concat();
    let broken = adapted(&dir.path().join("broken"), &base, &in_background);
    stop_after(&broken, Stage::Sft, 3);
    assert_eq!(
        adapter_bytes(&finish(&broken, Stage::Sft)),
        adapter_bytes(&sft)
    );
    assert_eq!(metrics(&broken, Stage::Sft), losses);
    stop_after(&broken, Stage::Grpo, 3);
    assert_eq!(
        adapter_bytes(&finish(&broken, Stage::Grpo)),
        adapter_bytes(&grpo)
    );
    assert_eq!(metrics(&broken, Stage::Grpo), steps);

    // Whoever loads the folder gets base and adapters; the merged folder is the same model in one piece.
    let ids = Tensor::from_slice(&[3_i64, 1, 4, 1, 5, 9, 2, 6]);
    let logits = |dir: &Path| {
        let decoder = Decoder::load(dir, Device::Cpu, Kind::Float).unwrap();
        let segments = Segments::separate(&[8]).unwrap();
        let hidden = decoder.hidden_packed(&ids, &segments).unwrap();
        decoder.lm_head(&hidden).unwrap()
    };
    let used = logits(&grpo);
    assert_eq!(used, logits(&grpo.join("merged")));
    // The copy in bf16 has the adapters added too, and one rounding more.
    let values = |dir: &Path| {
        let decoder = Decoder::load(dir, Device::Cpu, Kind::Float).unwrap();
        let values = decoder.named_parameters().iter();
        values.map(|(_, tensor)| tensor.copy()).collect::<Vec<_>>()
    };
    for (exact, rounded) in values(&grpo.join("merged"))
        .iter()
        .zip(values(&grpo.join("bf16")))
    {
        assert_eq!(exact.to_kind(Kind::BFloat16).to_kind(Kind::Float), rounded);
    }
    assert_ne!(used, logits(&base));
    let files = PretrainedModel::load(&grpo, Device::Cpu, Precision::F32).unwrap();
    let expected = PretrainedModel::load(&base, Device::Cpu, Precision::F32).unwrap();
    assert_eq!(files.tokenizer.eos_ids(), expected.tokenizer.eos_ids());
    assert!(!files.tokenizer.eos_ids().is_empty());
}

#[test]
fn other_adapters_than_the_recipes_are_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let base = base_model(&dir.path().join("base"));
    let recipe = adapted(&dir.path().join("first"), &base, &["sft.num_steps=2"]);
    let sft = finish(&recipe, Stage::Sft);

    // As a model to start from.
    let other = adapted(
        &dir.path().join("second"),
        &sft,
        &["sft.num_steps=2", "model.lora.rank=2"],
    );
    let error = run(&other, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Gradient(asyncthink_gradient::Error::Model(
                asyncthink_model::Error::OtherAdapters { .. }
            ))
        ),
        "{error}"
    );
    assert!(error.to_string().contains("rank 4") && error.to_string().contains("rank 2"));

    // As a checkpoint to go on from.
    let changed = adapted(
        &dir.path().join("third"),
        &base,
        &["sft.num_steps=2", "model.lora.alpha=16"],
    );
    copy_folder(
        &RunLayout::new(&recipe.run_dir).stage(Stage::Sft),
        &RunLayout::new(&changed.run_dir).stage(Stage::Sft),
    );
    let error = run(&changed, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(error.to_string().contains("`model.lora.alpha`"), "{error}");

    // Adapters on another base are another model to begin with.
    let grpo = adapted(&dir.path().join("first"), &base, &["sft.num_steps=2"]);
    stop_after(&grpo, Stage::Grpo, 1);
    let weights = base.join("model.safetensors");
    let original = fs::read(&weights).unwrap();
    let mut altered = original.clone();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    fs::write(&weights, altered).unwrap();
    fs::remove_file(base.join("trainer/manifest.json")).unwrap();
    let error = run(&grpo, Stage::Grpo, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Checkpoint(CheckpointError::InitialModelChanged { .. })
        ),
        "{error}"
    );
    fs::write(&weights, original).unwrap();

    // The same adapters go on.
    let same = adapted(&dir.path().join("fourth"), &sft, &["sft.num_steps=2"]);
    let again = finish(&same, Stage::Sft);
    assert_ne!(adapter_bytes(&again), adapter_bytes(&sft));
}
