//! The part of a Hugging Face `config.json` that shapes the decoder.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Sizes and constants of a Qwen3-architecture decoder, as `config.json` spells them.
///
/// Keys that this crate does not use are kept in `other` and written back unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Always `qwen3`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Inner width of the gated feed-forward block.
    pub intermediate_size: i64,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: i64,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: i64,
    /// Width of one head; free of `hidden_size / num_attention_heads`.
    pub head_dim: i64,
    /// Added to the mean square inside every `RMSNorm`.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Longest position that the model is meant for, in tokens.
    pub max_position_embeddings: i64,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Everything else that the file held.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The sizes that define a freshly initialised model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelSizes {
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Inner width of the feed-forward block.
    pub intermediate_size: i64,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: i64,
    /// Key and value heads.
    pub num_kv_heads: i64,
    /// Width of one head.
    pub head_dim: i64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Longest supported position, in tokens.
    pub max_position_embeddings: i64,
    /// Whether head and embedding are one matrix.
    pub tie_word_embeddings: bool,
    /// Id that ends a sequence.
    pub eos_token_id: i64,
}

/// Copies `rope_parameters.rope_theta`, where newer files keep it, to the top level, where older ones have it.
fn lift_rope_theta(config: &mut Value) {
    let nested = config.pointer("/rope_parameters/rope_theta").cloned();
    if let (Some(map), Some(theta)) = (config.as_object_mut(), nested) {
        map.entry("rope_theta").or_insert(theta);
    }
}

/// Whether rotary parameters ask for nothing beyond a base.
fn is_plain_rope(value: &Value) -> bool {
    let kind = value.get("rope_type").or_else(|| value.get("type"));
    value.is_null() || kind.and_then(Value::as_str) == Some("default")
}

impl ModelConfig {
    /// Describes a new model of the given sizes.
    ///
    /// # Errors
    /// When the sizes contradict each other.
    pub fn new(sizes: &ModelSizes) -> Result<Self> {
        let mut other = Map::new();
        other.insert(
            "architectures".into(),
            Value::from(vec!["Qwen3ForCausalLM"]),
        );
        other.insert("attention_bias".into(), Value::from(false));
        other.insert("attention_dropout".into(), Value::from(0.0));
        other.insert("bos_token_id".into(), Value::Null);
        other.insert("eos_token_id".into(), Value::from(sizes.eos_token_id));
        other.insert("hidden_act".into(), Value::from("silu"));
        other.insert("initializer_range".into(), Value::from(0.02));
        other.insert("torch_dtype".into(), Value::from("float32"));
        other.insert("use_cache".into(), Value::from(true));
        other.insert("use_sliding_window".into(), Value::from(false));
        let config = Self {
            model_type: "qwen3".into(),
            vocab_size: sizes.vocab_size,
            hidden_size: sizes.hidden_size,
            intermediate_size: sizes.intermediate_size,
            num_hidden_layers: sizes.num_layers,
            num_attention_heads: sizes.num_heads,
            num_key_value_heads: sizes.num_kv_heads,
            head_dim: sizes.head_dim,
            rms_norm_eps: 1e-6,
            rope_theta: sizes.rope_theta,
            max_position_embeddings: sizes.max_position_embeddings,
            tie_word_embeddings: sizes.tie_word_embeddings,
            other,
        };
        config.check()?;
        Ok(config)
    }

    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// When the file is missing or unreadable, or asks for something that is not implemented.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = fs_err::read_to_string(&path)?;
        let refuse = |source| Error::Json {
            path: path.clone(),
            source,
        };
        let mut value: Value = serde_json::from_str(&text).map_err(refuse)?;
        lift_rope_theta(&mut value);
        let config: Self = serde_json::from_value(value).map_err(refuse)?;
        config.check()?;
        Ok(config)
    }

    /// Writes `config.json` into a model folder, for weights of type `dtype` (`float32`, `bfloat16`, ...).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, dir: &Path, dtype: &str) -> Result<()> {
        let path = dir.join("config.json");
        let mut config = self.clone();
        // The key has two names; whichever the file had is kept.
        let key = if config.other.contains_key("dtype") {
            "dtype"
        } else {
            "torch_dtype"
        };
        config.other.insert(key.to_owned(), Value::from(dtype));
        let mut text = serde_json::to_string_pretty(&config).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        text.push('\n');
        fs_err::write(path, text)?;
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let refuse = |key, value: &Value, supported| {
            Err(Error::Unsupported {
                key,
                value: value.to_string(),
                supported,
            })
        };
        if self.model_type != "qwen3" {
            return refuse(
                "model_type",
                &Value::from(self.model_type.clone()),
                "`qwen3`",
            );
        }
        for (key, wanted) in [
            ("hidden_act", Value::from("silu")),
            ("attention_bias", Value::from(false)),
            ("use_sliding_window", Value::from(false)),
        ] {
            match self.other.get(key) {
                None => {}
                Some(value) if *value == wanted => {}
                Some(value) => {
                    return refuse(key, value, "`silu`, no attention bias, no sliding window");
                }
            }
        }
        for key in ["rope_scaling", "rope_parameters"] {
            if let Some(value) = self.other.get(key)
                && !is_plain_rope(value)
            {
                return refuse(
                    key,
                    value,
                    "null or `rope_type` `default`: plain rotary positions",
                );
            }
        }
        if let Some(types) = self.other.get("layer_types")
            && types
                .as_array()
                .is_none_or(|types| types.iter().any(|kind| kind != "full_attention"))
        {
            return refuse("layer_types", types, "`full_attention` in every layer");
        }
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((key, value)) = positive.into_iter().find(|&(_, value)| value < 1) {
            return Err(Error::Config(format!(
                "`{key}` must be at least 1: {value}"
            )));
        }
        if self.num_hidden_layers == 0 {
            return Err(Error::Config(
                "`num_hidden_layers` must be at least 1: 0".into(),
            ));
        }
        if self.num_attention_heads % self.num_key_value_heads != 0 {
            return Err(Error::Config(format!(
                "`num_attention_heads` ({}) must be a multiple of `num_key_value_heads` ({})",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        if self.head_dim % 2 != 0 {
            return Err(Error::Config(format!(
                "`head_dim` must be even for rotary positions: {}",
                self.head_dim
            )));
        }
        Ok(())
    }

    /// Ids that end a sequence according to the configuration.
    pub fn eos_token_ids(&self) -> Vec<i64> {
        match self.other.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
            Some(value) => value.as_i64().into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Name and shape of every parameter, in a fixed order (sorted by name).
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<i64>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let query = self.num_attention_heads * self.head_dim;
        let key_value = self.num_key_value_heads * self.head_dim;
        let mut shapes = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![self.vocab_size, hidden],
            ),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]));
        }
        for layer in 0..self.num_hidden_layers {
            for (name, shape) in [
                ("input_layernorm.weight", vec![hidden]),
                ("mlp.down_proj.weight", vec![hidden, inner]),
                ("mlp.gate_proj.weight", vec![inner, hidden]),
                ("mlp.up_proj.weight", vec![inner, hidden]),
                ("post_attention_layernorm.weight", vec![hidden]),
                ("self_attn.k_norm.weight", vec![self.head_dim]),
                ("self_attn.k_proj.weight", vec![key_value, hidden]),
                ("self_attn.o_proj.weight", vec![hidden, query]),
                ("self_attn.q_norm.weight", vec![self.head_dim]),
                ("self_attn.q_proj.weight", vec![query, hidden]),
                ("self_attn.v_proj.weight", vec![key_value, hidden]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}"), shape));
            }
        }
        shapes.sort();
        shapes
    }

    /// Number of trained values.
    pub fn num_parameters(&self) -> i64 {
        self.parameter_shapes()
            .iter()
            .map(|(_, shape)| shape.iter().product::<i64>())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: &str = r#""model_type": "qwen3", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "tie_word_embeddings": true"#;

    fn read(rest: &str) -> Result<ModelConfig> {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(
            dir.path().join("config.json"),
            format!("{{{SIZES}, {rest}}}"),
        )
        .unwrap();
        ModelConfig::from_dir(dir.path())
    }

    #[test]
    fn the_rotary_base_is_read_in_both_places() {
        for rest in [
            r#""rope_theta": 5000.0"#,
            r#""rope_theta": 5000.0, "rope_scaling": null"#,
            r#""rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}"#,
        ] {
            assert!((read(rest).unwrap().rope_theta - 5000.0).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_key() {
        for (rest, key) in [
            (
                r#""rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}"#,
                "rope_scaling",
            ),
            (r#""rope_theta": 1.0, "hidden_act": "gelu""#, "hidden_act"),
            (
                r#""rope_theta": 1.0, "attention_bias": true"#,
                "attention_bias",
            ),
            (
                r#""rope_theta": 1.0, "use_sliding_window": true"#,
                "use_sliding_window",
            ),
            (
                r#""rope_theta": 1.0, "layer_types": ["sliding_attention"]"#,
                "layer_types",
            ),
        ] {
            let message = read(rest).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
        assert!(
            read(r#""other": 1"#)
                .unwrap_err()
                .to_string()
                .contains("config.json")
        );
    }

    #[test]
    fn unknown_keys_survive_and_the_type_is_that_of_the_weights() {
        let config = read(r#""rope_theta": 1.0, "my_key": [1, 2], "dtype": "bfloat16""#).unwrap();
        let dir = tempfile::tempdir().unwrap();
        config.save(dir.path(), "float32").unwrap();
        let again = ModelConfig::from_dir(dir.path()).unwrap();
        assert_eq!(again.other["my_key"], serde_json::json!([1, 2]));
        assert_eq!(again.other["dtype"], "float32");
        assert!(!again.other.contains_key("torch_dtype"));
    }
}
