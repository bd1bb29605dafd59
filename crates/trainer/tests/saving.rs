//! Checkpoints that are written while training goes on, and which of them stay.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use asyncthink_checkpoint::RunLayout;
use asyncthink_model::Decoder;
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{Error, Resume, RunOutcome};
use common::{Watcher, alone, finish, metrics, recipe, run, weights};
use fs_err as fs;
use serde_json::Value;
use tch::{Device, Kind};

fn checkpoint(recipe: &Recipe, step: u64) -> PathBuf {
    let folder = RunLayout::new(&recipe.run_dir).checkpoints(Stage::Sft);
    folder.join(format!("step_{step}"))
}

fn state(checkpoint: &Path) -> Value {
    serde_json::from_slice(&fs::read(checkpoint.join("trainer/state.json")).unwrap()).unwrap()
}

/// Every file below a folder.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

#[test]
fn a_checkpoint_written_in_the_background_is_that_of_its_step() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let run_of = |how: &str| {
        let background = format!("save_in_background={how}");
        let sets = ["sft.save_every_steps=3", "sft.keep_checkpoints=9"];
        recipe(&dir.path().join(how), &[&sets[..], &[&background]].concat())
    };
    let (never, always) = (run_of("never"), run_of("always"));
    let mut watcher = Watcher::default();
    run(&never, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    assert_eq!(watcher.saved, [(3, 3), (6, 6), (9, 9), (12, 12)]);
    let mut watcher = Watcher::default();
    run(&always, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let (steps, done): (Vec<u64>, Vec<u64>) = watcher.saved.iter().copied().unzip();
    assert_eq!(steps, [3, 6, 9, 12]);
    // Complete at the end of a later step, but the last.
    for (step, done) in steps.iter().zip(&done).take(3) {
        assert!(step < done && *done <= step + 3, "{:?}", watcher.saved);
    }
    assert_eq!(done[3], 12);

    let expected = metrics(&never, Stage::Sft);
    assert_eq!(metrics(&always, Stage::Sft), expected);
    let log = fs::read(RunLayout::new(&always.run_dir).metrics(Stage::Sft)).unwrap();
    for step in steps {
        let (mut a, mut b) = (
            files(&checkpoint(&never, step)),
            files(&checkpoint(&always, step)),
        );
        assert!(a.contains_key(Path::new("model.safetensors")));
        assert!(a.contains_key(Path::new("trainer/optimizer/rank_0_of_1.safetensors")));
        for file in ["trainer/state.json", "trainer/manifest.json"] {
            // The length of the metrics file depends on how long things took.
            assert!(a.remove(Path::new(file)).is_some() && b.remove(Path::new(file)).is_some());
        }
        assert!(a == b, "step {step}");
        let recorded = state(&checkpoint(&always, step))["metrics_bytes"]
            .as_u64()
            .unwrap();
        let seen = &log[..usize::try_from(recorded).unwrap()];
        let num_lines = str::from_utf8(seen).unwrap().lines().count();
        assert_eq!(num_lines as u64, step);
        assert_eq!(seen.last(), Some(&b'\n'));
    }

    // What was measured last goes with the checkpoints after it.
    let held_out = expected[4]["held_out_loss"].as_f64();
    assert!(held_out.is_some());
    let figures = &state(&checkpoint(&always, 6))["figures"];
    assert_eq!(figures["held_out_loss"].as_f64(), held_out);

    let last = weights(&checkpoint(&never, 12));
    for step in [3, 6] {
        let mut watcher = Watcher::default();
        let from = Resume::From(checkpoint(&always, step));
        run(&always, Stage::Sft, from, &mut watcher).unwrap();
        assert_eq!(watcher.steps.first(), Some(&(step + 1)));
        assert_eq!(metrics(&always, Stage::Sft), expected);
        assert_eq!(weights(&checkpoint(&always, 12)), last);
    }
}

#[test]
fn a_run_that_is_stopped_finishes_what_it_was_writing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["save_in_background=always", "sft.save_every_steps=3"];
    let recipe = recipe(dir.path(), &sets);
    let mut watcher = Watcher {
        stop_after_step: Some(4),
        ..Watcher::default()
    };
    let outcome = run(&recipe, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let RunOutcome::Stopped {
        checkpoint: Some(dir),
        step: 4,
        ..
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(dir, checkpoint(&recipe, 4));
    assert_eq!(watcher.saved, [(3, 4), (4, 4)]);
    assert!(checkpoint(&recipe, 3).is_dir() && dir.is_dir());
    // Stopped at the very step that is being written.
    let mut watcher = Watcher {
        stop_after_step: Some(6),
        ..Watcher::default()
    };
    run(&recipe, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    assert_eq!(watcher.saved, [(6, 6)]);
}

#[test]
fn the_best_checkpoint_stays_and_has_a_name() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // With such steps the loss soon rises again.
    let sets = [
        "sft.save_every_steps=2",
        "sft.keep_checkpoints=1",
        "sft.keep_best_checkpoints=2",
        "sft.best_metric=loss",
        "sft.optimizer.learning_rate=0.5",
    ];
    let recipe = recipe(dir.path(), &sets);
    let mut watcher = Watcher {
        stop_after_step: Some(8),
        ..Watcher::default()
    };
    run(&recipe, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    finish(&recipe, Stage::Sft);
    let lines = metrics(&recipe, Stage::Sft);
    let loss = |step: u64| {
        lines[usize::try_from(step).unwrap() - 1]["loss"]
            .as_f64()
            .unwrap()
    };
    let mut steps: Vec<u64> = (1..=6).map(|index| 2 * index).collect();
    steps.sort_by(|a, b| loss(*a).total_cmp(&loss(*b)).then(b.cmp(a)));
    let folder = RunLayout::new(&recipe.run_dir).checkpoints(Stage::Sft);
    let best = fs::read_link(folder.join("best")).unwrap();
    assert_eq!(best, Path::new(&format!("step_{}", steps[0])));
    for (place, step) in steps.iter().enumerate() {
        let dir = checkpoint(&recipe, *step);
        assert_eq!(dir.exists(), place < 2 || *step == 12, "step {step}");
        if dir.exists() {
            assert_eq!(state(&dir)["figures"]["loss"].as_f64(), Some(loss(*step)));
        }
    }
    let steps = watcher.saved.iter().map(|(step, _)| *step);
    assert_eq!(steps.collect::<Vec<_>>(), [2, 4, 6, 8]);
}

#[test]
fn weights_that_are_no_numbers_replace_no_checkpoint() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["sft.save_every_steps=1", "sft.num_steps=6"];
    let good = recipe(dir.path(), &sets);
    let mut watcher = Watcher {
        stop_after_step: Some(2),
        ..Watcher::default()
    };
    run(&good, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    let before = [1, 2].map(|step| files(&checkpoint(&good, step)));
    for how in ["never", "always"] {
        let background = format!("save_in_background={how}");
        // The weights leave the range of f32 in the next update, whose loss and gradient are as they should be.
        let diverging = [
            &sets[..],
            &[
                "sft.optimizer.weight_decay=1e44",
                "allow_changed=[\"sft.optimizer\"]",
                &background,
            ],
        ];
        let diverging = recipe(dir.path(), &diverging.concat());
        let mut watcher = Watcher::default();
        let error = run(&diverging, Stage::Sft, Resume::Auto, &mut watcher).unwrap_err();
        let Error::NonFiniteTensor { step: 3, tensor } = &error else {
            panic!("{error}")
        };
        assert!(tensor.starts_with("model.layers.0."), "{tensor}");
        assert!(error.to_string().contains("step 3 is not saved") && !error.is_input());
        assert!(watcher.saved.is_empty());
        let after = [1, 2].map(|step| files(&checkpoint(&good, step)));
        assert!(before == after && !checkpoint(&good, 3).exists());
        let latest = RunLayout::new(&good.run_dir).checkpoints(Stage::Sft);
        let latest = fs::read_link(latest.join("latest")).unwrap();
        assert_eq!(latest, Path::new("step_2"));
    }
    let mut watcher = Watcher::default();
    run(&good, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    assert_eq!(watcher.steps, [3, 4, 5, 6]);
}

/// Types and shapes of the tensors of a model folder, by name, from the header of its file.
fn header(model: &Path) -> BTreeMap<String, (String, Value)> {
    let bytes = weights(model);
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let text = &bytes[8..8 + usize::try_from(len).unwrap()];
    let header: BTreeMap<String, Value> = serde_json::from_slice(text).unwrap();
    let tensors = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__");
    tensors
        .map(|(name, info)| {
            let dtype = info["dtype"].as_str().unwrap().to_owned();
            (name, (dtype, info["shape"].clone()))
        })
        .collect()
}

#[test]
fn the_finished_model_gets_a_copy_in_half_the_bytes() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["sft.final_dtype=bf16", "sft.keep_checkpoints=9"];
    let recipe = recipe(dir.path(), &sets);
    let model = finish(&recipe, Stage::Sft);
    let copy = model.join("bf16");
    let (exact, rounded) = (header(&model), header(&copy));
    assert_eq!(exact.len(), rounded.len());
    for (name, (dtype, shape)) in exact {
        assert_eq!(dtype, "F32");
        assert_eq!(rounded[&name], ("BF16".to_owned(), shape), "{name}");
    }
    let config = fs::read(copy.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let dtype = config.get("dtype").or_else(|| config.get("torch_dtype"));
    assert_eq!(dtype, Some(&"bfloat16".into()), "{config}");
    let values = |dir: &Path| {
        let decoder = Decoder::load(dir, Device::Cpu, Kind::Float).unwrap();
        let values = decoder.named_parameters().iter();
        values.map(|(_, tensor)| tensor.copy()).collect::<Vec<_>>()
    };
    for (exact, rounded) in values(&model).iter().zip(values(&copy)) {
        assert_eq!(exact.to_kind(Kind::BFloat16).to_kind(Kind::Float), rounded);
    }
    for file in ["tokenizer.json", "asyncthink.json", "README.md"] {
        assert!(copy.join(file).is_file(), "{file}");
    }
    // Earlier checkpoints have none, and the copy is not in the way of going on.
    assert!(!checkpoint(&recipe, 4).join("bf16").exists());
    let mut watcher = Watcher::default();
    run(
        &recipe,
        Stage::Sft,
        Resume::From(checkpoint(&recipe, 8)),
        &mut watcher,
    )
    .unwrap();
    assert_eq!(watcher.steps, [9, 10, 11, 12]);
}
