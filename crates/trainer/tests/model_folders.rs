//! What a saved model's folder takes over from the folder that the model was loaded from.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use asyncthink_model::{Decoder, ModelConfig, ModelSizes};
use asyncthink_model::{Precision, PretrainedModel};
use fs_err as fs;
use serde_json::Value;
use tch::Device;

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1}}}"#;

/// As a person wrote it: its own order of keys, its own white space, and what this project knows nothing of.
const GENERATION_CONFIG: &str =
    "{ \"top_p\": 0.950,\n\"eos_token_id\":[1, 0], \"_from\": \"elsewhere\" }";

fn base_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: 8,
        hidden_size: 8,
        intermediate_size: 8,
        num_layers: 1,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 4,
        rope_theta: 10_000.0,
        max_position_embeddings: 16,
        tie_word_embeddings: true,
        eos_token_id: 1,
    })
    .unwrap();
    let decoder = Decoder::init(&config, Device::Cpu, 1).unwrap();
    decoder.save(dir.path()).unwrap();
    fs::write(dir.path().join("tokenizer.json"), TOKENIZER).unwrap();
    dir
}

fn text(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn the_generation_config_of_the_base_model_is_kept_byte_for_byte() {
    let base = base_model();
    fs::write(
        base.path().join("generation_config.json"),
        GENERATION_CONFIG,
    )
    .unwrap();
    let model = PretrainedModel::load(base.path(), Device::Cpu, Precision::F32).unwrap();
    let saved = tempfile::tempdir().unwrap();
    model.save(saved.path()).unwrap();
    assert_eq!(
        text(saved.path(), "generation_config.json"),
        GENERATION_CONFIG
    );
    // Whichever of the two is written first.
    let saved = tempfile::tempdir().unwrap();
    model.tokenizer.save(saved.path()).unwrap();
    model.decoder.save(saved.path()).unwrap();
    assert_eq!(
        text(saved.path(), "generation_config.json"),
        GENERATION_CONFIG
    );
}

#[test]
fn a_base_model_without_one_gets_one_that_ends_where_its_configuration_says() {
    let base = base_model();
    fs::remove_file(base.path().join("generation_config.json")).unwrap();
    let model = PretrainedModel::load(base.path(), Device::Cpu, Precision::F32).unwrap();
    let saved = tempfile::tempdir().unwrap();
    model.save(saved.path()).unwrap();
    let written: Value =
        serde_json::from_str(&text(saved.path(), "generation_config.json")).unwrap();
    assert_eq!(written["eos_token_id"], 1);
}

#[test]
fn the_configuration_keeps_its_order_of_keys() {
    let base = base_model();
    let path = base.path().join("config.json");
    let written = fs::read_to_string(&path).unwrap().replacen(
        '{',
        "{\n  \"zz\": 1e-06, \"transformers_version\": \"4.51.0\",",
        1,
    );
    fs::write(&path, written.replace("float32", "bfloat16")).unwrap();
    let saved = tempfile::tempdir().unwrap();
    let model = PretrainedModel::load(base.path(), Device::Cpu, Precision::F32).unwrap();
    model.save(saved.path()).unwrap();
    // Loaded in f32, so the type is another.
    assert_eq!(text(saved.path(), "config.json"), written);
}
