//! The decoder of the Llama and Qwen families: grouped-query attention, `SwiGLU`, `RMSNorm` before each block; with biases
//! and normalised queries and keys where the configuration has them.

mod adapted;
mod host_copy;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use asyncthink_torch::decode_attention_;
use tch::{Device, Kind, TchError, Tensor};

use crate::attention::segmented_attention;
use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::lora::{self, Adapters, LowRank};
use crate::weights;

/// Standard deviation of freshly drawn weights (Qwen's `initializer_range`).
const INIT_STD: f64 = 0.02;

/// libtorch's generator is one per process: seeding and drawing must not interleave with another thread's.
static GENERATOR: Mutex<()> = Mutex::new(());

/// A decoder with its parameters.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    kind: Kind,
    parameters: Vec<(String, Tensor)>,
    adapters: Option<Adapters>,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
    /// Radians per position, f32 `[head_dim / 2]`.
    frequencies: Tensor,
}

/// Tokens to feed in one decoding step. A sequence may bring several (its prompt, or text injected by a Join): they are
/// ordinary rows with successive positions, so prefill and decoding share one batch without padding.
#[derive(Debug)]
pub struct StepBatch<'a> {
    /// Token ids `[rows]`.
    pub ids: &'a [i64],
    /// Position of each row in its sequence.
    pub positions: &'a [i64],
    /// Cache slot of each row.
    pub slots: &'a [i64],
    /// Rows whose next token is wanted, ascending.
    pub sample_rows: &'a [i64],
}

#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    query_key_norm: Option<[Tensor; 2]>,
    output: Linear,
    post_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A projection `[out, in]`, with or without a bias `[out]` and an adapter.
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<LowRank>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let output = x.f_linear(&self.weight, self.bias.as_ref())?;
        match &self.adapter {
            Some(adapter) => output.f_add(&adapter.forward(x)?),
            None => Ok(output),
        }
    }
}

/// Cosines and sines `[tokens, 1, head_dim / 2]` of one forward pass, shared by all layers.
struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Decoder {
    /// Draws a new model: weights normal with deviation 0.02, the two projections that write to the residual stream
    /// scaled down by `sqrt(2 * layers)`, norms at one. Equal seeds give equal weights on one machine.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn init(config: &ModelConfig, device: Device, seed: u64) -> Result<Self> {
        let residual_std = INIT_STD / (2.0 * config.num_hidden_layers as f64).sqrt();
        let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        tch::manual_seed(seed.cast_signed());
        let parameters = config
            .parameter_shapes()
            .into_iter()
            .map(|(name, shape)| {
                let options = (Kind::Float, Device::Cpu);
                let is_bias = shape.len() == 1;
                let tensor = if name.ends_with("norm.weight") {
                    Tensor::f_ones(&shape, options)?
                } else if is_bias {
                    Tensor::f_zeros(&shape, options)?
                } else if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
                    Tensor::f_randn(&shape, options)? * residual_std
                } else {
                    Tensor::f_randn(&shape, options)? * INIT_STD
                };
                Ok((name, tensor.f_to_device(device)?))
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        Self::assemble(config.clone(), device, Kind::Float, parameters, None)
    }

    /// Loads a Hugging Face model folder, converting every tensor to `kind`. Of a PEFT adapter folder the base model is
    /// loaded and the adapters are merged into it.
    ///
    /// # Errors
    /// When the configuration is not supported, or the weights are missing, misshaped or unreadable.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        if lora::base_of(dir)?.is_some() {
            return Self::load_adapted(dir, device, kind)?.into_merged();
        }
        let config = ModelConfig::from_dir(dir)?;
        let parameters = weights::load(dir, &config, device, kind)?;
        Self::assemble(config, device, kind, parameters, None)
    }

    /// Writes `config.json` and the weights into an existing folder: `model.safetensors`, or shards of at most 5 GB with an
    /// index; and `generation_config.json`, unless the folder has one. Of a model with adapters, these alone are written, as PEFT does.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_in_shards(dir, weights::MAX_SHARD_BYTES)
    }

    /// The same with another limit on the size of a file.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_in_shards(&self, dir: &Path, max_shard_bytes: usize) -> Result<()> {
        if let Some(adapters) = &self.adapters {
            weights::save_generation_config(dir, &self.config)?;
            return adapters.save(dir);
        }
        let dtype = match self.kind {
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            _ => "float32",
        };
        self.config.save(dir, dtype)?;
        weights::save_generation_config(dir, &self.config)?;
        weights::save(dir, &self.parameters, max_shard_bytes)
    }

    fn assemble(
        config: ModelConfig,
        device: Device,
        kind: Kind,
        parameters: Vec<(String, Tensor)>,
        adapters: Option<Adapters>,
    ) -> Result<Self> {
        let find = |name: &str| {
            let index = parameters.partition_point(|(other, _)| other.as_str() < name);
            let found = parameters.get(index).filter(|(other, _)| other == name);
            found.map(|(_, tensor)| tensor.shallow_clone())
        };
        let get = |name: &str| {
            find(name).ok_or_else(|| Error::Config(format!("there is no parameter `{name}`")))
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| {
                let path = |name: &str, kind: &str| format!("model.layers.{index}.{name}.{kind}");
                let norm = |name: &str| get(&path(name, "weight"));
                let linear = |name: &str| {
                    Ok::<_, Error>(Linear {
                        weight: get(&path(name, "weight"))?,
                        bias: find(&path(name, "bias")),
                        adapter: adapters
                            .as_ref()
                            .and_then(|all| all.of_module(&format!("model.layers.{index}.{name}"))),
                    })
                };
                let query_key_norm = if config.architecture.has_query_key_norm() {
                    Some([norm("self_attn.q_norm")?, norm("self_attn.k_norm")?])
                } else {
                    None
                };
                Ok(Layer {
                    input_norm: norm("input_layernorm")?,
                    query: linear("self_attn.q_proj")?,
                    key: linear("self_attn.k_proj")?,
                    value: linear("self_attn.v_proj")?,
                    query_key_norm,
                    output: linear("self_attn.o_proj")?,
                    post_norm: norm("post_attention_layernorm")?,
                    gate: linear("mlp.gate_proj")?,
                    up: linear("mlp.up_proj")?,
                    down: linear("mlp.down_proj")?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let embedding = get("model.embed_tokens.weight")?;
        let norm = get("model.norm.weight")?;
        let head = if config.tie_word_embeddings {
            embedding.shallow_clone()
        } else {
            get("lm_head.weight")?
        };
        let frequencies = config.rope.frequencies(config.head_dim)?;
        Ok(Self {
            frequencies: frequencies.f_to_device(device)?,
            config,
            device,
            kind,
            parameters,
            adapters,
            embedding,
            layers,
            norm,
            head,
        })
    }

    /// A decoder over the same weights with gradients of its own, for another thread: what one updates in place, the
    /// other sees.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn replica(&self) -> Result<Self> {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, tensor)| {
                (
                    name.clone(),
                    tensor.detach().set_requires_grad(tensor.requires_grad()),
                )
            })
            .collect();
        let adapters = self.adapters.as_ref().map(Adapters::replica);
        Self::assemble(
            self.config.clone(),
            self.device,
            self.kind,
            parameters,
            adapters,
        )
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the parameters live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Type of the parameters.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Every parameter under its Hugging Face name, sorted by name; adapters are apart.
    pub fn named_parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// The adapters, if the model has some.
    pub fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    /// What training changes: the adapters, or every parameter of a model without; sorted by name.
    pub fn trained_parameters(&self) -> &[(String, Tensor)] {
        match &self.adapters {
            Some(adapters) => adapters.named_parameters(),
            None => &self.parameters,
        }
    }

    /// Asks for gradients on what training changes, or for none.
    pub fn set_requires_grad(&mut self, requires_grad: bool) {
        if let Some(adapters) = &mut self.adapters {
            adapters.set_requires_grad(requires_grad);
        } else {
            for (_, tensor) in &mut self.parameters {
                *tensor = tensor.set_requires_grad(requires_grad);
            }
        }
    }

    /// Final hidden states, after the last norm, of a packed batch; differentiable.
    ///
    /// # Shapes
    /// `ids` i64 `[tokens]`, `segment_lens` sums to `tokens`; positions restart at 0 in every segment. Returns
    /// `[tokens, hidden]` of the model's kind.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn hidden_packed(&self, ids: &Tensor, segment_lens: &[i64]) -> Result<Tensor> {
        let positions: Vec<i64> = segment_lens.iter().flat_map(|&len| 0..len).collect();
        let rotary = self.rotary(&positions)?;
        self.forward(ids, &rotary, &mut |_, query, key, value| {
            Ok(segmented_attention(query, key, value, segment_lens)?)
        })
    }

    /// Feeds one batch of tokens to the cache and returns f32 logits `[sample_rows, vocab]`.
    ///
    /// Runs without gradients. The caller has made sure that every position is inside the cache's capacity.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn step(&self, batch: &StepBatch<'_>, cache: &KvCache) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let on_device = |values: &[i64]| Tensor::from_slice(values).f_to_device(self.device);
        let rotary = self.rotary(batch.positions)?;
        let slots = on_device(batch.slots)?;
        let positions = on_device(batch.positions)?;
        let hidden = self.forward(
            &on_device(batch.ids)?,
            &rotary,
            &mut |layer, query, key, value| {
                let (key_cache, value_cache) = cache.layer(layer);
                Ok(decode_attention_(
                    query,
                    key,
                    value,
                    key_cache,
                    value_cache,
                    &slots,
                    &positions,
                )?)
            },
        )?;
        let wanted = if batch.sample_rows.len() == batch.ids.len() {
            hidden
        } else {
            hidden.f_index_select(0, &on_device(batch.sample_rows)?)?
        };
        self.lm_head(&wanted)
    }

    /// Logits in f32 of hidden states: `[tokens, hidden]` to `[tokens, vocab]`. Callers bound `tokens` to a chunk.
    ///
    /// # Errors
    /// When libtorch refuses the operation.
    pub fn lm_head(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden
            .f_linear::<&Tensor>(&self.head, None)?
            .f_to_kind(Kind::Float)?)
    }

    fn forward(
        &self,
        ids: &Tensor,
        rotary: &Rotary,
        attend: &mut dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let eps = self.config.rms_norm_eps;
        let mut hidden = Tensor::f_embedding(&self.embedding, ids, -1, false, false)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&hidden, &layer.input_norm, eps)?;
            let (query, key, value) = self.project(layer, &normed, rotary)?;
            let attended = attend(index, &query, &key, &value)?.f_flatten(1, 2)?;
            hidden = hidden.f_add(&layer.output.forward(&attended)?)?;
            let normed = rms_norm(&hidden, &layer.post_norm, eps)?;
            let gate = layer.gate.forward(&normed)?.f_silu()?;
            let gated = gate.f_mul(&layer.up.forward(&normed)?)?;
            hidden = hidden.f_add(&layer.down.forward(&gated)?)?;
        }
        Ok(rms_norm(&hidden, &self.norm, eps)?)
    }

    /// Queries `[tokens, heads, head_dim]` and keys, values `[tokens, kv_heads, head_dim]`, normed where the family does, and rotated.
    fn project(
        &self,
        layer: &Layer,
        normed: &Tensor,
        rotary: &Rotary,
    ) -> Result<(Tensor, Tensor, Tensor), TchError> {
        let head_dim = self.config.head_dim;
        let eps = self.config.rms_norm_eps;
        let heads_of = |linear: &Linear| linear.forward(normed)?.f_unflatten(1, [-1, head_dim]);
        let (mut query, mut key) = (heads_of(&layer.query)?, heads_of(&layer.key)?);
        if let Some([query_norm, key_norm]) = &layer.query_key_norm {
            query = rms_norm(&query, query_norm, eps)?;
            key = rms_norm(&key, key_norm, eps)?;
        }
        Ok((
            rotary.apply(&query)?,
            rotary.apply(&key)?,
            heads_of(&layer.value)?,
        ))
    }

    fn rotary(&self, positions: &[i64]) -> Result<Rotary, TchError> {
        let positions = Tensor::from_slice(positions)
            .f_to_device(self.device)?
            .f_to_kind(Kind::Float)?;
        let angles = positions.f_outer(&self.frequencies)?.f_unsqueeze(1)?;
        let scaled = |values: Tensor| {
            match self.config.rope.attention_factor() {
                Some(factor) => values * factor,
                None => values,
            }
            .f_to_kind(self.kind)
        };
        Ok(Rotary {
            cos: scaled(angles.f_cos()?)?,
            sin: scaled(angles.f_sin()?)?,
        })
    }
}

impl Rotary {
    /// Rotates `[tokens, heads, head_dim]` by position, halves paired as in Hugging Face's `rotate_half`.
    fn apply(&self, heads: &Tensor) -> Result<Tensor, TchError> {
        let halves = heads.f_chunk(2, -1)?;
        let (first, second) = (&halves[0], &halves[1]);
        Tensor::f_cat(
            &[
                first.f_mul(&self.cos)?.f_sub(&second.f_mul(&self.sin)?)?,
                second.f_mul(&self.cos)?.f_add(&first.f_mul(&self.sin)?)?,
            ],
            -1,
        )
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, computed in f32.
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    x.f_rms_norm(weight.size(), Some(weight), eps)
}
