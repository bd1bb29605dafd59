//! Folders whose files contradict each other, hold more than the model needs, or are no weights at all. Where they can be
//! read, they give the log-probs of Hugging Face `transformers`: `scripts/golden/foreign_folders.py`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a panic is a failed test, and the numbers are small"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use asyncthink_model::{Decoder, ModelConfig, ModelFolder, check_folder};
use common::{WIDTH, logits, write_named_tensors};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Device, Kind};

const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Golden {
    ids: Vec<i64>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    config: Map<String, Value>,
    files: BTreeMap<String, BTreeMap<String, Stored>>,
    index: BTreeMap<String, String>,
    logprobs: Vec<f64>,
    is_tied: bool,
    warns: bool,
}

/// A tensor with the values that the formula gives another name.
#[derive(Deserialize)]
struct Stored {
    shape: Vec<i64>,
    values_of: String,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/foreign_folders.json");
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

fn write_case(dir: &Path, case: &Case) {
    let config = serde_json::to_string(&case.config).unwrap();
    fs_err::write(dir.join("config.json"), config).unwrap();
    for (file, tensors) in &case.files {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, it)| (name.clone(), it.values_of.clone(), it.shape.clone()))
            .collect();
        write_named_tensors(&dir.join(file), &tensors, WIDTH);
    }
    if !case.index.is_empty() {
        let index = json!({ "weight_map": case.index });
        fs_err::write(dir.join(INDEX), index.to_string()).unwrap();
    }
}

fn load(dir: &Path) -> Decoder {
    Decoder::load(dir, Device::Cpu, Kind::Float).unwrap()
}

fn worst(decoder: &Decoder, ids: &[i64], expected: &[f64]) -> f64 {
    let scores = tch::no_grad(|| logits(decoder, ids)).log_softmax(-1, Kind::Double);
    (1..ids.len())
        .map(|at| scores.double_value(&[at as i64 - 1, ids[at]]) - expected[at - 1])
        .fold(0.0, |worst, off| worst.max(off.abs()))
}

#[test]
fn logprobs_are_those_of_transformers_and_what_is_passed_over_is_said() {
    let golden = golden();
    assert!(golden.cases.len() >= 8);
    for (name, case) in &golden.cases {
        let dir = tempfile::tempdir().unwrap();
        write_case(dir.path(), case);
        let decoder = load(dir.path());
        let off = worst(&decoder, &golden.ids, &case.logprobs);
        assert!(off < 1e-4, "{name}: off by {off}");
        assert_eq!(decoder.config().tie_word_embeddings, case.is_tied, "{name}");
        let report = check_folder(dir.path()).unwrap();
        // `transformers` says nothing about an index that it does not look at.
        let warns = case.warns || !case.index.is_empty();
        assert_eq!(
            !report.warnings.is_empty(),
            warns,
            "{name}: {:?}",
            report.warnings
        );
        assert_eq!(
            report.num_tensors,
            decoder.named_parameters().len(),
            "{name}"
        );

        // The saved config matches the weights, so loading it gives no warning.
        let again = tempfile::tempdir().unwrap();
        decoder.save(again.path()).unwrap();
        let saved = load(again.path());
        assert!(worst(&saved, &golden.ids, &case.logprobs) < 1e-4, "{name}");
        assert_eq!(saved.config().tie_word_embeddings, case.is_tied, "{name}");
        if !case.config.contains_key("rope_scaling") {
            let report = check_folder(again.path()).unwrap();
            assert_eq!(report.warnings, [""; 0], "{name}");
        }
    }
}

#[test]
fn warnings_name_what_is_passed_over() {
    let golden = golden();
    for (name, words) in [
        (
            "tied_head_differs",
            &["`tie_word_embeddings`", "`lm_head.weight`", "config.json"][..],
        ),
        ("stale_shards", &[INDEX, "ignored"]),
        (
            "surplus_tensor",
            &["`model.layers.0.self_attn.q_proj.bias`"],
        ),
        (
            "yarn_attn_factor",
            &["`rope_scaling.attn_factor`", "`attention_factor`"],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_case(dir.path(), &golden.cases[name]);
        let warnings = check_folder(dir.path()).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        for word in words {
            assert!(warnings[0].contains(word), "{warnings:?}");
        }
    }
}

/// A kept head is trained: it is a parameter of its own, and gets gradients.
#[test]
fn a_kept_head_is_a_parameter() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    write_case(dir.path(), &golden.cases["tied_head_differs"]);
    let mut decoder = load(dir.path());
    decoder.set_requires_grad(true);
    logits(&decoder, &golden.ids).sum(Kind::Float).backward();
    let head = decoder
        .trained_parameters()
        .iter()
        .find(|(name, _)| name == "lm_head.weight");
    assert!(head.unwrap().1.grad().defined());
}

/// Heads of equal values in two types of number are one head.
#[test]
fn a_head_is_compared_by_value() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    write_case(dir.path(), &golden.cases["tied_head_alone"]);
    let path = dir.path().join("model.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let head = tensors.tensor("lm_head.weight").unwrap();
    // Values that 16 bits can hold.
    let short: Vec<[u8; 2]> = head.data().chunks(4).map(|it| [it[2], it[3]]).collect();
    let long: Vec<u8> = short.iter().flat_map(|it| [0, 0, it[0], it[1]]).collect();
    let short = short.concat();
    let view = |dtype, data| {
        safetensors::tensor::TensorView::new(dtype, head.shape().to_vec(), data).unwrap()
    };
    let mut views: Vec<_> = tensors.tensors();
    views.retain(|(name, _)| name != "lm_head.weight");
    views.push((
        "lm_head.weight".into(),
        view(safetensors::Dtype::BF16, &short),
    ));
    views.push((
        "model.embed_tokens.weight".into(),
        view(safetensors::Dtype::F32, &long),
    ));
    fs_err::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    assert!(
        ModelConfig::from_dir(dir.path())
            .unwrap()
            .tie_word_embeddings
    );
}

/// A folder of `inv_freq`'s model with one file replaced by `content`; the message and the hint.
fn refusal(name: &str, content: &[u8]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    write_case(dir.path(), &golden().cases["inv_freq"]);
    fs_err::write(dir.path().join(name), content).unwrap();
    refusal_of(dir.path())
}

/// The check without weights refuses what loading refuses.
fn refusal_of(dir: &Path) -> (String, String) {
    let error = Decoder::load(dir, Device::Cpu, Kind::Float).unwrap_err();
    assert_eq!(
        check_folder(dir).unwrap_err().to_string(),
        error.to_string()
    );
    (
        error.to_string(),
        error.hint().unwrap_or_default().to_owned(),
    )
}

#[test]
fn stand_ins_for_files_are_named_as_what_they_are() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";
    let page = b"<!DOCTYPE html>\n<html><body>Log in</body></html>";
    let utf16: Vec<u8> = "\u{feff}{\"model_type\": \"llama\"}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (content, kind, way_out) in [
        (&pointer[..], "Git LFS pointer", "git lfs pull"),
        (page, "web page", "download the file again"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "gzip", "gunzip"),
        (&utf16, "UTF-16", "UTF-8"),
    ] {
        for name in ["model.safetensors", "config.json"] {
            let (message, hint) = refusal(name, content);
            assert!(
                message.contains(kind) && message.contains(name),
                "{message}"
            );
            assert!(hint.contains(way_out), "{message}: {hint}");
        }
    }
}

#[test]
fn a_byte_order_mark_before_json_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let golden = golden();
    let mut case = golden
        .cases
        .into_iter()
        .find(|(name, _)| name == "stale_shards")
        .unwrap()
        .1;
    case.files.remove("model.safetensors");
    write_case(dir.path(), &case);
    for name in ["config.json", INDEX] {
        let path = dir.path().join(name);
        let text = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, format!("\u{feff}{text}")).unwrap();
    }
    let decoder = load(dir.path());
    let again = tempfile::tempdir().unwrap();
    decoder.save(again.path()).unwrap();
    assert!(
        fs_err::read(again.path().join("config.json"))
            .unwrap()
            .starts_with(b"{")
    );
}

#[test]
fn folders_in_place_of_files_and_other_formats_are_named() {
    let dir = tempfile::tempdir().unwrap();
    write_case(dir.path(), &golden().cases["inv_freq"]);
    let weights = dir.path().join("model.safetensors");
    fs_err::remove_file(&weights).unwrap();
    let (message, hint) = refusal_of(dir.path());
    assert!(message.contains("holds neither"), "{message}");
    assert!(hint.contains("fetch"), "{hint}");
    fs_err::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    let (message, hint) = refusal_of(dir.path());
    assert!(message.contains("but `pytorch_model.bin`"), "{message}");
    assert!(hint.contains("safetensors"), "{hint}");
    fs_err::create_dir(&weights).unwrap();
    assert!(refusal_of(dir.path()).0.contains("is a folder, not a file"));
}

#[test]
fn quantised_weights_are_refused_with_the_way_out() {
    let golden = golden();
    let case = &golden.cases["inv_freq"];
    let check = |dir: &Path, words: &[&str]| {
        let (message, hint) = refusal_of(dir);
        for word in ["quantised"].iter().chain(words) {
            assert!(message.contains(word), "{message}");
        }
        assert!(hint.contains("dequantise"), "{hint}");
    };
    let dir = tempfile::tempdir().unwrap();
    write_case(dir.path(), case);
    let path = dir.path().join("model.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    for (stored, dtype) in [
        (name.to_owned(), safetensors::Dtype::F8_E4M3),
        (name.to_owned(), safetensors::Dtype::I8),
        (name.replace("weight", "qweight"), safetensors::Dtype::U8),
    ] {
        let data = vec![0; 24 * 24];
        let mut views: Vec<_> = tensors.tensors();
        views.retain(|(other, _)| other != name);
        let view = safetensors::tensor::TensorView::new(dtype, vec![24, 24], &data).unwrap();
        views.push((stored.clone(), view));
        fs_err::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        check(dir.path(), &[&stored, "model.safetensors"]);
    }
    let mut config = case.config.clone();
    config.insert(
        "quantization_config".into(),
        json!({"quant_method": "gptq", "bits": 4}),
    );
    fs_err::write(
        dir.path().join("config.json"),
        serde_json::to_string(&config).unwrap(),
    )
    .unwrap();
    check(
        dir.path(),
        &["`quantization_config` (`gptq`)", "config.json"],
    );
}

#[test]
fn an_adapter_folder_takes_the_base_that_is_given() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = (dir.path().join("base"), dir.path().join("adapter"));
    fs_err::create_dir(&base).unwrap();
    fs_err::create_dir(&adapter).unwrap();
    write_case(&base, &golden.cases["inv_freq"]);
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"],
        "layers_to_transform": [0], "base_model_name_or_path": "meta/Llama"});
    fs_err::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let tensor = |part: &str, shape: [i64; 2]| {
        let name = format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight");
        (name.clone(), name, shape.to_vec())
    };
    let path = adapter.join("adapter_model.safetensors");
    write_named_tensors(&path, &[tensor("A", [1, 24]), tensor("B", [24, 1])], WIDTH);

    let (message, hint) = refusal_of(&adapter);
    assert!(
        message.contains("`meta/Llama`") && hint.contains("--base DIR"),
        "{message}: {hint}"
    );
    let folder = ModelFolder::new(&adapter).with_base(Some(&base));
    let report = check_folder(folder).unwrap();
    assert_eq!(report.num_adapter_tensors, 2);
    let decoder = Decoder::load_adapted(folder, Device::Cpu, Kind::Float).unwrap();
    assert_eq!(decoder.adapters().unwrap().base(), base);
    // The saved adapter config names the base folder that was used.
    decoder.save(&adapter).unwrap();
    assert_eq!(check_folder(&adapter).unwrap().num_adapter_tensors, 2);
}
