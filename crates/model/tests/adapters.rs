//! Adapters give the log-probs of Hugging Face PEFT: `scripts/golden/lora_logits.py`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a panic is a failed test, and the numbers are small"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use asyncthink_model::{Decoder, LoraConfig, LoraTarget};
use common::{WIDTH, logits, write_folder, write_tensors};
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Golden {
    ids: Vec<i64>,
    /// Width of the noise in the adapters' matrices.
    adapter_width: f64,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    config: Map<String, Value>,
    /// As PEFT wrote it, but for the path of the base model.
    adapter_config: Map<String, Value>,
    shapes: BTreeMap<String, Vec<i64>>,
    logprobs: Vec<f64>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora.json");
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

/// A base model and adapters on it, as PEFT leaves them, in `dir/base` and `dir/adapter`.
fn write_case(dir: &Path, case: &Case, width: f64) {
    fs_err::create_dir_all(dir.join("base")).unwrap();
    fs_err::create_dir_all(dir.join("adapter")).unwrap();
    write_folder(&dir.join("base"), &case.config, WIDTH, 1);
    let mut config = case.adapter_config.clone();
    // Relative to the adapter's own folder.
    config.insert("base_model_name_or_path".into(), "../base".into());
    let path = dir.join("adapter/adapter_config.json");
    fs_err::write(path, serde_json::to_string(&config).unwrap()).unwrap();
    let shapes: Vec<(String, Vec<i64>)> = case.shapes.clone().into_iter().collect();
    let path = dir.join("adapter/adapter_model.safetensors");
    write_tensors(&path, &shapes, width);
}

fn scores(decoder: &Decoder, ids: &[i64]) -> Vec<f64> {
    let scores = tch::no_grad(|| logits(decoder, ids)).log_softmax(-1, Kind::Double);
    (1..ids.len())
        .map(|position| scores.double_value(&[position as i64 - 1, ids[position]]))
        .collect()
}

fn worst(ours: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(ours.len(), expected.len());
    ours.iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

#[test]
fn logprobs_equal_those_of_peft_apart_and_merged_and_after_a_round_trip() {
    let golden = golden();
    for (name, case) in &golden.cases {
        let dir = tempfile::tempdir().unwrap();
        write_case(dir.path(), case, golden.adapter_width);
        let folder = dir.path().join("adapter");
        let apart = Decoder::load_adapted(&folder, Device::Cpu, Kind::Float).unwrap();
        assert_eq!(
            apart.trained_parameters().len(),
            case.shapes.len(),
            "{name}: the adapters alone are trained"
        );
        let base = Decoder::load(&dir.path().join("base"), Device::Cpu, Kind::Float).unwrap();
        let plain = scores(&base, &golden.ids);
        assert!(
            worst(&plain, &case.logprobs) > 0.1,
            "{name}: the adapters must matter"
        );
        for (way, decoder) in [
            ("apart", &apart),
            ("merged", &apart.merged().unwrap()),
            (
                "loaded to be used",
                &Decoder::load(&folder, Device::Cpu, Kind::Float).unwrap(),
            ),
        ] {
            let off = worst(&scores(decoder, &golden.ids), &case.logprobs);
            assert!(off < 1e-4, "{name}, {way}: off by {off}");
        }
        let bf16 = Decoder::load(&folder, Device::Cpu, Kind::BFloat16).unwrap();
        assert_eq!(bf16.kind(), Kind::BFloat16);

        let again = dir.path().join("again");
        fs_err::create_dir(&again).unwrap();
        apart.save(&again).unwrap();
        let bytes = |folder: &Path| fs_err::read(folder.join("adapter_model.safetensors")).unwrap();
        let reloaded = Decoder::load_adapted(&again, Device::Cpu, Kind::Float).unwrap();
        for ((left_name, left), (right_name, right)) in apart
            .trained_parameters()
            .iter()
            .zip(reloaded.trained_parameters())
        {
            assert!(left_name == right_name && left == right, "{left_name}");
        }
        reloaded.save(&again).unwrap();
        assert!(!again.join("model.safetensors").exists());
        assert!(!bytes(&again).is_empty());
    }
}

fn new_adapters(base: &Path, targets: &[LoraTarget]) -> Decoder {
    let config = LoraConfig {
        rank: 3,
        alpha: 6.0,
        use_rslora: false,
        targets: targets.iter().copied().collect(),
        without: BTreeSet::new(),
    };
    Decoder::load(base, Device::Cpu, Kind::Float)
        .unwrap()
        .with_new_adapters(config, base, 5)
        .unwrap()
}

#[test]
fn new_adapters_change_nothing_and_alone_get_gradients() {
    let golden = golden();
    let case = golden.cases.values().next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_case(dir.path(), case, golden.adapter_width);
    let base = dir.path().join("base");
    let plain = Decoder::load(&base, Device::Cpu, Kind::Float).unwrap();
    let mut decoder = new_adapters(&base, &LoraTarget::ALL);
    assert_eq!(scores(&plain, &golden.ids), scores(&decoder, &golden.ids));

    decoder.set_requires_grad(true);
    let mut merged = decoder.merged().unwrap();
    let loss = logits(&decoder, &golden.ids).log_softmax(-1, Kind::Float);
    loss.get(3).get(5).backward();
    for (name, tensor) in decoder.named_parameters() {
        assert!(!tensor.grad().defined(), "{name} is frozen");
    }
    let mut num_moved = 0;
    for (name, tensor) in decoder.trained_parameters() {
        let moves = tensor.grad().abs().max().double_value(&[]) > 0.0;
        // B is zero, so that A has no gradient yet.
        assert_eq!(moves, name.ends_with("lora_B.weight"), "{name}");
        num_moved += usize::from(moves);
    }
    assert_eq!(num_moved, 7 * decoder.config().num_hidden_layers);

    // One step of descent reaches the copy when it is refreshed, and not before.
    tch::no_grad(|| {
        for (_, tensor) in decoder.trained_parameters() {
            let mut tensor = tensor.shallow_clone();
            let step: Tensor = tensor.grad() * 0.5;
            let _ = tensor.f_sub_(&step).unwrap();
        }
    });
    let before = worst(
        &scores(&merged, &golden.ids),
        &scores(&decoder, &golden.ids),
    );
    assert!(before > 1e-3, "{before}");
    decoder.refresh_merged(&mut merged).unwrap();
    let after = worst(
        &scores(&merged, &golden.ids),
        &scores(&decoder, &golden.ids),
    );
    assert!(after < 1e-4, "{after}");
    assert_eq!(
        scores(&plain, &golden.ids),
        scores(
            &Decoder::load(&base, Device::Cpu, Kind::Float).unwrap(),
            &golden.ids
        )
    );
}

#[test]
fn adapters_that_do_not_fit_are_named() {
    let golden = golden();
    let case = golden.cases.values().next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_case(dir.path(), case, golden.adapter_width);
    let folder = dir.path().join("adapter");
    let refused = |reason: &str| {
        let error = Decoder::load(&folder, Device::Cpu, Kind::Float).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    };
    let path = folder.join("adapter_model.safetensors");
    let mut shapes: Vec<(String, Vec<i64>)> = case.shapes.clone().into_iter().collect();
    let (name, shape) = shapes.pop().unwrap();
    write_tensors(&path, &shapes, 1.0);
    refused(&format!("missing `{name}`"));
    shapes.push((name.clone(), vec![shape[0] + 1, shape[1]]));
    write_tensors(&path, &shapes, 1.0);
    refused(&format!("`{name}` has shape"));
    shapes.last_mut().unwrap().1 = shape;
    shapes.push((
        "base_model.model.lm_head.lora_A.weight".to_owned(),
        vec![1, 1],
    ));
    write_tensors(&path, &shapes, 1.0);
    refused("unexpected `base_model.model.lm_head.lora_A.weight`");
    fs_err::write(&path, b"no tensors").unwrap();
    refused("adapter_model.safetensors");
    fs_err::remove_dir_all(dir.path().join("base")).unwrap();
    refused("`base_model_name_or_path` is `../base`");
}
