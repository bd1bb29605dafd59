//! A family of one's own: a reader of `config.json` and a line in the registry.

use asyncthink_model::{
    Architecture, Architectures, Biases, Decoder, Fields, ModelConfig, Result, Segments, Sizes,
    Variant,
};
use serde_json::json;
use tch::{Device, Tensor};

/// A family whose heads are as many for keys as for queries, and which adds no bias.
#[derive(Debug)]
struct Plain;

impl Architecture for Plain {
    fn model_type(&self) -> &'static str {
        "plain"
    }

    fn read(&self, fields: &Fields<'_>, sizes: Sizes) -> Result<Variant> {
        Ok(Variant {
            num_key_value_heads: sizes.num_attention_heads,
            head_dim: fields.required_size("width_of_head")?,
            biases: Biases::default(),
            has_query_key_norm: false,
        })
    }
}

#[test]
fn a_family_is_read_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "plain", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "width_of_head": 6, "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    fs_err::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let unknown = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(
        unknown.contains("(supported: `llama`, `qwen2` and `qwen3`)"),
        "{unknown}"
    );
    let families = Architectures::builtin().with(&Plain);
    let config = ModelConfig::from_dir_with(dir.path(), &families).unwrap();
    assert_eq!((config.architecture, config.head_dim), ("plain", 6));
    let decoder = Decoder::init(&config, Device::Cpu, 1).unwrap();
    let hidden = decoder
        .hidden_packed(
            &Tensor::from_slice(&[1_i64, 2, 3]),
            &Segments::separate(&[3]).unwrap(),
        )
        .unwrap();
    assert_eq!(hidden.size(), [3, 8]);
}
