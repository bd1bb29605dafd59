//! The part of a Hugging Face `config.json` that shapes the decoder.

use std::path::Path;

use asyncthink_files::read_structured;
use serde_json::{Map, Value};

use crate::adapter_file::base_of;
use crate::architecture::registry::Architectures;
use crate::architecture::{Biases, Sizes, Variant};
use crate::config_text::{untied, with_dtype};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::model_folder::ModelFolder;
use crate::rope::Rope;
use crate::tied_head::head_differs;
use crate::weight_files::WeightFiles;

/// Sizes and constants of a decoder. Made by checks only: what it describes can be built.
///
/// The file that it was read from is kept whole, keys that mean nothing here included, and is written back.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family's `model_type`.
    pub architecture: &'static str,
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
    /// Rotary positions.
    pub rope: Rope,
    /// Which projections add a bias.
    pub biases: Biases,
    /// Whether queries and keys are normalised head by head.
    pub has_query_key_norm: bool,
    /// Longest position that the model is meant for, in tokens.
    pub max_position_embeddings: i64,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Sentences for people on what was read in another way than it is written.
    warnings: Vec<String>,
    /// The whole file.
    raw: Map<String, Value>,
    /// The same as it was written.
    text: String,
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

impl ModelConfig {
    /// Describes a new model of the Qwen3 architecture and the given sizes.
    ///
    /// # Errors
    /// When the sizes contradict each other.
    pub fn new(sizes: &ModelSizes) -> Result<Self> {
        let raw = serde_json::json!({
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": null,
            "eos_token_id": sizes.eos_token_id,
            "head_dim": sizes.head_dim,
            "hidden_act": "silu",
            "hidden_size": sizes.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": sizes.intermediate_size,
            "max_position_embeddings": sizes.max_position_embeddings,
            "model_type": "qwen3",
            "num_attention_heads": sizes.num_heads,
            "num_hidden_layers": sizes.num_layers,
            "num_key_value_heads": sizes.num_kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": sizes.rope_theta,
            "tie_word_embeddings": sizes.tie_word_embeddings,
            "torch_dtype": "float32",
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": sizes.vocab_size,
        });
        // The alternate form is that of a file, indented by two.
        let text = format!("{raw:#}\n");
        match raw {
            Value::Object(raw) => Self::from_map(raw, text, &Architectures::builtin()),
            _ => Err(Error::Config("not an object".into())),
        }
    }

    /// Reads `config.json` of a model folder, or of the base model of an adapter folder. Where it ties the head to the
    /// embedding and the weights have a head of other values, the model counts as untied, as in `transformers`.
    ///
    /// # Errors
    /// When the file is missing or unreadable, or asks for something that is not implemented.
    pub fn from_dir<'a>(folder: impl Into<ModelFolder<'a>>) -> Result<Self> {
        Self::from_dir_with(folder, &Architectures::builtin())
    }

    /// [`Self::from_dir`] of one of the given families.
    ///
    /// # Errors
    /// As [`Self::from_dir`].
    pub fn from_dir_with<'a>(
        folder: impl Into<ModelFolder<'a>>,
        architectures: &Architectures,
    ) -> Result<Self> {
        let folder = folder.into();
        let base = base_of(folder)?;
        let dir = base.as_deref().unwrap_or(folder.dir());
        let path = dir.join("config.json");
        let text = read_structured(&path)?;
        let raw = serde_json::from_str(&text).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        let mut config =
            Self::from_map(raw, text, architectures).map_err(|error| Error::InFile {
                path,
                source: Box::new(error),
            })?;
        // Weights that cannot be opened are refused by those who read them.
        if config.tie_word_embeddings
            && let Ok(weights) = WeightFiles::open(dir)
            && head_differs(&weights.files)?
        {
            config.untie()?;
        }
        Ok(config)
    }

    /// Keeps the head that the weights have, in training and in what is saved.
    fn untie(&mut self) -> Result<()> {
        self.text = untied(&self.text).map_err(|error| Error::Config(error.to_string()))?;
        self.tie_word_embeddings = false;
        self.warnings.push(
            "`tie_word_embeddings` is true, but the weights hold an `lm_head.weight` that is not the embedding: it is kept as \
             the head, untied, as in `transformers`"
                .to_owned(),
        );
        Ok(())
    }

    /// Sentences for people on what was read in another way than it is written.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Defaults are those of the family's configuration class in `transformers`.
    fn from_map(
        raw: Map<String, Value>,
        text: String,
        architectures: &Architectures,
    ) -> Result<Self> {
        let top = Fields::top(&raw);
        let architecture = top
            .text("model_type")?
            .and_then(|model_type| architectures.find(model_type))
            .ok_or_else(|| top.unsupported("model_type", architectures.names()))?;
        refuse_what_is_missing_here(&top, &raw)?;
        let sizes = Sizes {
            hidden_size: top.required_size("hidden_size")?,
            num_attention_heads: top.required_size("num_attention_heads")?,
        };
        let Variant {
            num_key_value_heads,
            head_dim,
            biases,
            has_query_key_norm,
        } = architecture.read(&top, sizes)?;
        let max_position_embeddings = top.required_size("max_position_embeddings")?;
        let mut warnings = Vec::new();
        let num_layers = top.required_size("num_hidden_layers")?;
        let config = Self {
            architecture: architecture.model_type(),
            vocab_size: top.required_size("vocab_size")?,
            hidden_size: sizes.hidden_size,
            intermediate_size: top.required_size("intermediate_size")?,
            num_hidden_layers: usize::try_from(num_layers).unwrap_or(usize::MAX),
            num_attention_heads: sizes.num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: top.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope: Rope::read(&raw, max_position_embeddings, &mut warnings)?,
            biases,
            has_query_key_norm,
            max_position_embeddings,
            tie_word_embeddings: top.flag("tie_word_embeddings")?.unwrap_or(false),
            warnings,
            raw,
            text,
        };
        config.check_heads()?;
        Ok(config)
    }

    fn check_heads(&self) -> Result<()> {
        if self.num_attention_heads % self.num_key_value_heads != 0 {
            return Err(Error::Config(format!(
                "`num_attention_heads` ({}) must be a multiple of `num_key_value_heads` ({})",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        if self.head_dim < 2 || self.head_dim % 2 != 0 {
            return Err(Error::Config(format!(
                "`head_dim` must be even for rotary positions: {}",
                self.head_dim
            )));
        }
        Ok(())
    }

    /// Writes `config.json` into a model folder, for weights of type `dtype` (`float32`, `bfloat16`, ...). All else is as
    /// it was read, byte for byte.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, dir: &Path, dtype: &str) -> Result<()> {
        let path = dir.join("config.json");
        let text = with_dtype(&self.text, dtype).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        fs_err::write(path, text)?;
        Ok(())
    }

    /// Ids that end a sequence according to the configuration.
    pub fn eos_token_ids(&self) -> Vec<i64> {
        match self.raw.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
            Some(value) => value.as_i64().into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Name and shape of every parameter, in a fixed order (sorted by name).
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<i64>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
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
        let query = self.num_attention_heads * self.head_dim;
        let key_value = self.num_key_value_heads * self.head_dim;
        let Biases {
            query_key_value,
            attention_output,
            feed_forward,
        } = self.biases;
        let projections = [
            ("mlp.down_proj", hidden, inner, feed_forward),
            ("mlp.gate_proj", inner, hidden, feed_forward),
            ("mlp.up_proj", inner, hidden, feed_forward),
            ("self_attn.k_proj", key_value, hidden, query_key_value),
            ("self_attn.o_proj", hidden, query, attention_output),
            ("self_attn.q_proj", query, hidden, query_key_value),
            ("self_attn.v_proj", key_value, hidden, query_key_value),
        ];
        let mut norms = vec![
            ("input_layernorm", hidden),
            ("post_attention_layernorm", hidden),
        ];
        if self.has_query_key_norm {
            norms.extend([
                ("self_attn.k_norm", self.head_dim),
                ("self_attn.q_norm", self.head_dim),
            ]);
        }
        for layer in 0..self.num_hidden_layers {
            let path = |name: &str, kind: &str| format!("model.layers.{layer}.{name}.{kind}");
            for (name, rows, columns, has_bias) in projections {
                shapes.push((path(name, "weight"), vec![rows, columns]));
                if has_bias {
                    shapes.push((path(name, "bias"), vec![rows]));
                }
            }
            for &(name, size) in &norms {
                shapes.push((path(name, "weight"), vec![size]));
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

/// What other models of these families use and this decoder lacks: computing without it would be silently wrong.
fn refuse_what_is_missing_here(top: &Fields<'_>, raw: &Map<String, Value>) -> Result<()> {
    if top.text("hidden_act")?.is_some_and(|name| name != "silu") {
        return Err(top.unsupported("hidden_act", "`silu`"));
    }
    if top.flag("use_sliding_window")?.unwrap_or(false) {
        return Err(top.unsupported("use_sliding_window", "false: attention over the whole text"));
    }
    if top.number("attention_dropout")?.unwrap_or(0.0) != 0.0 {
        return Err(top.unsupported("attention_dropout", "0"));
    }
    if let Some(quantisation) = raw.get("quantization_config").filter(|it| !it.is_null()) {
        let method = quantisation.get("quant_method").and_then(Value::as_str);
        let method = method.map_or_else(String::new, |method| format!(" (`{method}`)"));
        return Err(Error::Quantised {
            what: format!("there is a `quantization_config`{method}"),
        });
    }
    let is_full = |types: &Value| {
        types
            .as_array()
            .is_some_and(|types| types.iter().all(|kind| kind == "full_attention"))
    };
    match raw.get("layer_types") {
        None | Some(Value::Null) => Ok(()),
        Some(types) if is_full(types) => Ok(()),
        Some(_) => Err(top.unsupported("layer_types", "`full_attention` in every layer")),
    }
}

#[cfg(test)]
mod tests;
