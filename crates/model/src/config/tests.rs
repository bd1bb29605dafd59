//! What is read, what is refused, and what is written back.

use serde_json::json;

use super::*;
use crate::rope::RopeScaling;

/// A small configuration of a family with some keys changed.
fn read(model_type: &str, changes: Value) -> Result<ModelConfig> {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "rope_theta": 5000.0,
    });
    let Value::Object(changes) = changes else {
        panic!("changes are an object")
    };
    for (key, value) in changes {
        config[key] = value;
    }
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("config.json"), config.to_string()).unwrap();
    ModelConfig::from_dir(dir.path())
}

#[test]
fn rotary_positions_are_read_in_both_spellings() {
    let llama3 = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16});
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_positions: 16.0,
    };
    let with = |key: &str, value: &str| {
        let mut scaling = llama3.clone();
        scaling[key] = json!(value);
        scaling
    };
    let mut nested = with("rope_type", "llama3");
    nested["rope_theta"] = json!(5000.0);
    for changes in [
        json!({"rope_scaling": with("rope_type", "llama3")}),
        json!({"rope_scaling": with("type", "llama3")}),
        json!({"rope_theta": null, "rope_parameters": nested}),
    ] {
        let rope = read("llama", changes).unwrap().rope;
        assert_eq!((rope.theta, rope.scaling), (5000.0, expected.clone()));
    }
    for changes in [
        json!({}),
        json!({"rope_scaling": null}),
        json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
    ] {
        assert_eq!(read("qwen3", changes).unwrap().rope, Rope::plain(5000.0));
    }
    let linear = json!({"rope_theta": null, "rope_scaling": {"type": "linear", "factor": 2.0}});
    let rope = read("qwen2", linear).unwrap().rope;
    assert_eq!(
        (rope.theta, rope.scaling),
        (10_000.0, RopeScaling::Linear { factor: 2.0 })
    );
}

#[test]
fn a_rope_type_is_named_as_it_was_written() {
    for key in ["type", "rope_type"] {
        let error = read("llama", json!({"rope_scaling": {key: "longrope"}})).unwrap_err();
        let expected = format!("`rope_scaling.{key}` is not supported: \"longrope\"");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn what_is_not_implemented_is_refused_by_key() {
    let yarn = |key: &str| json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, key: 1}});
    for (changes, key) in [
        (
            json!({"rope_scaling": {"rope_type": "longrope"}}),
            "rope_scaling.rope_type",
        ),
        (json!({"rope_scaling": {"type": "su"}}), "rope_scaling.type"),
        (
            json!({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
            "rope_parameters.rope_type",
        ),
        (yarn("strength"), "rope_scaling.strength"),
        (
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "rope_scaling.factor",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": "2"}}),
            "rope_scaling.factor",
        ),
        (json!({"rope_scaling": 2}), "rope_scaling"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}),
            "rope_parameters",
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
        (json!({"rope_theta": 0.5}), "rope_theta"),
        (json!({"model_type": "mamba"}), "model_type"),
        (json!({"hidden_act": "gelu"}), "hidden_act"),
        (json!({"attention_dropout": 0.1}), "attention_dropout"),
        (json!({"use_sliding_window": true}), "use_sliding_window"),
        (json!({"layer_types": ["sliding_attention"]}), "layer_types"),
        (
            json!({"quantization_config": {"quant_method": "awq"}}),
            "quantization_config",
        ),
        (json!({"num_key_value_heads": null}), "num_key_value_heads"),
        (json!({"vocab_size": 0}), "vocab_size"),
        (json!({"vocab_size": "11"}), "vocab_size"),
        (json!({"head_dim": 3}), "head_dim"),
        (
            json!({"num_attention_heads": 3, "num_key_value_heads": 2}),
            "num_attention_heads",
        ),
    ] {
        let error = read("qwen3", changes.clone()).unwrap_err();
        let Error::InFile { path, source } = &error else {
            panic!("{error}")
        };
        assert!(path.ends_with("config.json"));
        assert!(
            source.to_string().contains(&format!("`{key}`")),
            "{changes}: {source}"
        );
    }
}

#[test]
fn families_differ_in_defaults_and_parameters() {
    let names = |model_type: &str, changes: Value| -> Vec<String> {
        let config = read(model_type, changes).unwrap();
        let shapes = config.parameter_shapes().into_iter();
        shapes.map(|(name, _)| name).collect()
    };
    let count =
        |names: &[String], part: &str| names.iter().filter(|name| name.contains(part)).count();
    let qwen3 = names("qwen3", json!({}));
    assert_eq!((count(&qwen3, "bias"), count(&qwen3, "_norm.")), (0, 2));
    let qwen2 = names("qwen2", json!({"attention_bias": false}));
    assert_eq!((count(&qwen2, "bias"), count(&qwen2, "_norm.")), (3, 0));
    let llama = names("llama", json!({"attention_bias": true, "mlp_bias": true}));
    assert_eq!((count(&llama, "bias"), count(&llama, "_norm.")), (7, 0));
    let bare = read(
        "llama",
        json!({"head_dim": null, "num_key_value_heads": null}),
    )
    .unwrap();
    assert_eq!((bare.head_dim, bare.num_key_value_heads), (4, 2));
    assert_eq!(
        read("qwen3", json!({"head_dim": null})).unwrap().head_dim,
        128
    );
}

#[test]
fn the_file_survives_and_the_type_is_that_of_the_weights() {
    let parameters = json!({"rope_type": "default", "rope_theta": 5000.0});
    let config = read(
        "qwen3",
        json!({"my_key": [1, 2], "dtype": "bfloat16", "rope_theta": null, "rope_parameters": parameters}),
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    config.save(dir.path(), "float32").unwrap();
    let again = ModelConfig::from_dir(dir.path()).unwrap();
    assert_eq!(again.raw["my_key"], json!([1, 2]));
    assert_eq!(again.raw["dtype"], "float32");
    assert_eq!(again.raw["rope_theta"], Value::Null);
    assert!(!again.raw.contains_key("torch_dtype"));
}

/// The order of keys, numbers as they were written and unknown keys: a user compares the two files.
#[test]
fn a_saved_file_differs_in_the_type_of_the_weights_alone() {
    let from = tempfile::tempdir().unwrap();
    let text = r#"{
  "vocab_size": 11, "tie_word_embeddings": true,
    "model_type": "qwen3",
  "torch_dtype": "bfloat16",
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0, "intermediate_size": 12, "num_hidden_layers": 1,
  "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8, "head_dim": 4,
  "max_position_embeddings": 64, "auto_map": {"z": 1, "a": [1, 2]}
}"#;
    fs_err::write(from.path().join("config.json"), text).unwrap();
    let to = tempfile::tempdir().unwrap();
    let config = ModelConfig::from_dir(from.path()).unwrap();
    config.save(to.path(), "float32").unwrap();
    let saved = fs_err::read_to_string(to.path().join("config.json")).unwrap();
    assert_eq!(saved, text.replace("bfloat16", "float32"));
}
