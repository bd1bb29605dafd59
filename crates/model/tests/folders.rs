//! Model folders: written, read back bit for bit, and refused with a reason when damaged.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a panic is a failed test, and the numbers are small"
)]

use std::path::Path;

use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Segments};
use tch::{Device, Kind, Tensor};

fn config(tie: bool) -> ModelConfig {
    ModelConfig::new(&ModelSizes {
        vocab_size: 29,
        hidden_size: 16,
        intermediate_size: 24,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 8,
        rope_theta: 10_000.0,
        max_position_embeddings: 64,
        tie_word_embeddings: tie,
        eos_token_id: 0,
    })
    .unwrap()
}

fn saved(tie: bool) -> (Decoder, tempfile::TempDir) {
    let decoder = Decoder::init(&config(tie), Device::Cpu, 3).unwrap();
    let dir = tempfile::tempdir().unwrap();
    decoder.save(dir.path()).unwrap();
    (decoder, dir)
}

fn load_error(dir: &Path) -> String {
    Decoder::load(dir, Device::Cpu, Kind::Float)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_saved_model_is_read_back_bit_for_bit() {
    for tie in [true, false] {
        let (decoder, dir) = saved(tie);
        let again = Decoder::load(dir.path(), Device::Cpu, Kind::Float).unwrap();
        assert_eq!(
            decoder.named_parameters().len(),
            again.named_parameters().len()
        );
        for ((name, a), (other, b)) in decoder
            .named_parameters()
            .iter()
            .zip(again.named_parameters())
        {
            assert_eq!(name, other);
            assert_eq!(a, b, "{name}");
        }
    }
}

#[test]
fn equal_seeds_give_equal_models_and_others_do_not() {
    let draw = |seed| Decoder::init(&config(true), Device::Cpu, seed).unwrap();
    let weight = |decoder: &Decoder| decoder.named_parameters()[0].1.copy();
    // libtorch's generator belongs to the whole process, so other tests must not draw in between.
    assert_eq!(weight(&draw(1)).size(), weight(&draw(2)).size());
    assert_ne!(weight(&draw(1)), weight(&draw(2)));
}

#[test]
fn packed_segments_do_not_see_each_other() {
    let (decoder, _dir) = saved(true);
    let ids = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6, 7, 8, 9]);
    let together = decoder
        .hidden_packed(&ids, &Segments::separate(&[4, 2, 3]).unwrap())
        .unwrap();
    let mut start = 0;
    for len in [4, 2, 3] {
        let alone = decoder
            .hidden_packed(
                &ids.narrow(0, start, len),
                &Segments::separate(&[len]).unwrap(),
            )
            .unwrap();
        let difference = (together.narrow(0, start, len) - alone)
            .abs()
            .max()
            .double_value(&[]);
        assert!(difference < 1e-5, "segment at {start}: {difference}");
        start += len;
    }
}

#[test]
fn a_replica_shares_weights_but_not_gradients() {
    let (mut decoder, _dir) = saved(true);
    decoder.set_requires_grad(true);
    let replica = decoder.replica().unwrap();
    let ids = Tensor::from_slice(&[1i64, 2, 3]);
    replica
        .hidden_packed(&ids, &Segments::separate(&[3]).unwrap())
        .unwrap()
        .sum(Kind::Float)
        .backward();
    let (ours, theirs) = (
        &decoder.named_parameters()[0].1,
        &replica.named_parameters()[0].1,
    );
    assert!(!ours.grad().defined() && theirs.grad().defined());
    tch::no_grad(|| {
        let _ = ours.shallow_clone().g_add_scalar_(1.0);
    });
    assert_eq!(ours.detach(), theirs.detach());
}

#[test]
fn damaged_and_foreign_folders_are_refused_with_a_reason() {
    let (_, dir) = saved(false);
    let weights = dir.path().join("model.safetensors");
    let bytes = fs_err::read(&weights).unwrap();
    for len in [0, 4, 100, bytes.len() - 5] {
        fs_err::write(&weights, &bytes[..len]).unwrap();
        assert!(
            load_error(dir.path()).contains("safetensors"),
            "cut at {len}"
        );
    }
    let mut huge_header = bytes.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs_err::write(&weights, &huge_header).unwrap();
    assert!(load_error(dir.path()).contains("safetensors"));
    fs_err::remove_file(&weights).unwrap();
    assert!(load_error(dir.path()).contains("model.safetensors"));

    fs_err::write(&weights, &bytes).unwrap();
    let path = dir.path().join("config.json");
    let text = fs_err::read_to_string(&path).unwrap();
    fs_err::write(
        &path,
        text.replace("\"vocab_size\": 29", "\"vocab_size\": 30"),
    )
    .unwrap();
    let message = load_error(dir.path());
    assert!(
        message.contains("lm_head.weight") && message.contains("[29, 16]"),
        "{message}"
    );
    fs_err::write(
        &path,
        text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
    )
    .unwrap();
    assert!(load_error(dir.path()).contains("missing `model.layers.2."));
    fs_err::write(
        &path,
        text.replace("\"model_type\": \"qwen3\"", "\"model_type\": \"gpt2\""),
    )
    .unwrap();
    assert!(load_error(dir.path()).contains("`model_type` is not supported"));
    fs_err::write(&path, "{").unwrap();
    assert!(load_error(dir.path()).contains("config.json"));
}

#[test]
fn an_index_must_not_reach_outside_the_folder() {
    let (_, dir) = saved(true);
    let index = dir.path().join("model.safetensors.index.json");
    fs_err::write(&index, r#"{"weight_map": {"a": "../model.safetensors"}}"#).unwrap();
    let single = dir.path().join("model.safetensors");
    let shard = dir.path().join("shard.safetensors");
    fs_err::rename(&single, &shard).unwrap();
    assert!(load_error(dir.path()).contains("not a file name"));
    fs_err::write(&index, r#"{"weight_map": {"a": "shard.safetensors"}}"#).unwrap();
    assert!(Decoder::load(dir.path(), Device::Cpu, Kind::Float).is_ok());
}

#[test]
fn shards_have_an_index_and_are_read_back() {
    let (decoder, _) = saved(false);
    let dir = tempfile::tempdir().unwrap();
    decoder.save_in_shards(dir.path(), 4_000).unwrap();
    assert!(!dir.path().join("model.safetensors").exists());
    let index = fs_err::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let parameters = decoder.named_parameters();
    let num_bytes: usize = parameters
        .iter()
        .map(|(_, tensor)| tensor.numel() * 4)
        .sum();
    assert_eq!(index["metadata"]["total_size"], num_bytes);
    let files: std::collections::BTreeSet<_> = index["weight_map"]
        .as_object()
        .unwrap()
        .values()
        .map(|file| file.as_str().unwrap())
        .collect();
    assert!(files.len() > 2, "{files:?}");
    // Saved in the other form, no file of the first one is taken for the weights.
    let one_file = tempfile::tempdir().unwrap();
    decoder.save(one_file.path()).unwrap();
    decoder.save_in_shards(one_file.path(), 4_000).unwrap();
    assert!(!one_file.path().join("model.safetensors").exists());
    decoder.save(one_file.path()).unwrap();
    assert!(
        !one_file
            .path()
            .join("model.safetensors.index.json")
            .exists()
    );
    for file in &files {
        // A header of at most 2 kB comes on top.
        assert!(fs_err::metadata(dir.path().join(file)).unwrap().len() < 6_000);
    }
    let again = Decoder::load(dir.path(), Device::Cpu, Kind::Float).unwrap();
    for ((name, left), (_, right)) in parameters.iter().zip(again.named_parameters()) {
        assert_eq!(left, right, "{name}");
    }
}

/// Headers that promise what the file does not hold: refused before anything of that size is made.
#[test]
fn hostile_headers_are_refused() {
    let (_, dir) = saved(true);
    let tensor = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let (huge, far) = ("[4294967296,4294967296,4294967296]", 1 << 60);
    for (header, reason) in [
        (
            format!(
                "{{{},{}}}",
                tensor("a", "[2]", 0, 8),
                tensor("b", "[2]", 4, 12)
            ),
            "invalid offset for tensor `b`",
        ),
        (
            format!(
                "{{{},{}}}",
                tensor("a", "[1]", 0, 4),
                tensor("b", "[2]", 8, 16)
            ),
            "invalid offset for tensor `b`",
        ),
        (
            format!("{{{}}}", tensor("a", "[2]", 8, 0)),
            "invalid offset for tensor `a`",
        ),
        (format!("{{{}}}", tensor("a", "[3]", 0, 16)), "header"),
        (format!("{{{}}}", tensor("a", huge, 0, 16)), "header"),
        (
            format!("{{{}}}", tensor("a", "[288230376151711744]", 0, far)),
            "which has 16",
        ),
        (format!("{{{}}}", tensor("a", "[2]", 0, 8)), "which has 16"),
        ("[1]".to_owned(), "header"),
        ("{".to_owned(), "header"),
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 16]);
        fs_err::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        let message = load_error(dir.path());
        assert!(
            message.contains(reason) && message.contains("safetensors"),
            "{header}: {message}"
        );
    }
}
