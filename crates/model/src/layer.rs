//! One layer of a decoder, and what comes before the first and after the last.
//!
//! Both are made from parameters that somebody looks up by name, and hold no more than references to them: a model that is
//! whole makes them once, one whose parameters are gathered from other processes makes a layer when it is needed.

mod pass;

use std::sync::Arc;

use asyncthink_torch::{Head, Normed, embedding_backward};
use tch::{Kind, TchError, Tensor};

pub use pass::SavedActivations;

use crate::adapters::{Adapters, LowRank};
use crate::attention::registry::default_backend;
use crate::attention::{Attention, DecodeRows, LayerCache};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::positions::{Packing, Rotary};

/// Finds a parameter by its Hugging Face name.
pub type FindParameter<'a> = &'a dyn Fn(&str) -> Option<Tensor>;

/// Attention and feed-forward block, each behind a norm and added to the residual stream.
#[derive(Debug)]
pub struct DecoderLayer {
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
    attention: Arc<dyn Attention>,
    head_dim: i64,
    eps: f64,
}

/// The token embedding, the final norm and the output head.
#[derive(Debug)]
pub struct DecoderEnds {
    embedding: Tensor,
    norm: Tensor,
    head: Tensor,
    eps: f64,
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

impl DecoderLayer {
    /// The layer `index` of a model, with adapters where it has some; it attends by the default backend.
    ///
    /// # Errors
    /// When a parameter is not found.
    pub fn new(
        config: &ModelConfig,
        index: usize,
        adapters: Option<&Adapters>,
        find: FindParameter<'_>,
    ) -> Result<Self> {
        let path = |name: &str, kind: &str| format!("model.layers.{index}.{name}.{kind}");
        let norm = |name: &str| get(find, &path(name, "weight"));
        let linear = |name: &str| {
            Ok::<_, Error>(Linear {
                weight: get(find, &path(name, "weight"))?,
                bias: find(&path(name, "bias")),
                adapter: adapters
                    .and_then(|all| all.of_module(&format!("model.layers.{index}.{name}"))),
            })
        };
        let query_key_norm = if config.has_query_key_norm {
            Some([norm("self_attn.q_norm")?, norm("self_attn.k_norm")?])
        } else {
            None
        };
        Ok(Self {
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
            attention: default_backend(),
            head_dim: config.head_dim,
            eps: config.rms_norm_eps,
        })
    }

    /// The layer with another attention backend.
    #[must_use]
    pub fn with_attention(mut self, attention: Arc<dyn Attention>) -> Self {
        self.attention = attention;
        self
    }

    /// Hidden states after the layer, of a packed batch; differentiable.
    ///
    /// # Shapes
    /// `hidden` `[tokens, hidden]`, and so is the result.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward_packed(&self, hidden: &Tensor, packing: &Packing) -> Result<Tensor> {
        self.compute(hidden, &packing.rotary, |query, key, value| {
            self.attention.varlen(query, key, value, &packing.segments)
        })
    }

    /// Hidden states after the layer, of the rows of a decoding step; no gradient.
    pub(crate) fn forward_decode(
        &self,
        hidden: &Tensor,
        rotary: &Rotary,
        cache: LayerCache<'_>,
        rows: &DecodeRows,
    ) -> Result<Tensor> {
        self.compute(hidden, rotary, |query, key, value| {
            self.attention.decode(query, key, value, cache, rows)
        })
    }

    fn compute(
        &self,
        hidden: &Tensor,
        rotary: &Rotary,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let normed = rms_norm(hidden, &self.input_norm, self.eps)?;
        let (query, key, value) = self.project(&normed, rotary)?;
        let attended = attend(&query, &key, &value)?.f_flatten(1, 2)?;
        let hidden = hidden.f_add(&self.output.forward(&attended)?)?;
        let normed = rms_norm(&hidden, &self.post_norm, self.eps)?;
        let gate = self.gate.forward(&normed)?.f_silu()?;
        let gated = gate.f_mul(&self.up.forward(&normed)?)?;
        Ok(hidden.f_add(&self.down.forward(&gated)?)?)
    }

    /// Queries `[tokens, heads, head_dim]` and keys, values `[tokens, kv_heads, head_dim]`, normed where the family does, and rotated.
    fn project(
        &self,
        normed: &Tensor,
        rotary: &Rotary,
    ) -> Result<(Tensor, Tensor, Tensor), TchError> {
        let heads_of =
            |linear: &Linear| linear.forward(normed)?.f_unflatten(1, [-1, self.head_dim]);
        let (mut query, mut key) = (heads_of(&self.query)?, heads_of(&self.key)?);
        if let Some([query_norm, key_norm]) = &self.query_key_norm {
            query = rms_norm(&query, query_norm, self.eps)?;
            key = rms_norm(&key, key_norm, self.eps)?;
        }
        Ok((
            rotary.apply(&query)?,
            rotary.apply(&key)?,
            heads_of(&self.value)?,
        ))
    }
}

impl DecoderEnds {
    /// Those of a model.
    ///
    /// # Errors
    /// When a parameter is not found.
    pub fn new(config: &ModelConfig, find: FindParameter<'_>) -> Result<Self> {
        let embedding = get(find, "model.embed_tokens.weight")?;
        let head = if config.tie_word_embeddings {
            embedding.shallow_clone()
        } else {
            get(find, "lm_head.weight")?
        };
        Ok(Self {
            norm: get(find, "model.norm.weight")?,
            embedding,
            head,
            eps: config.rms_norm_eps,
        })
    }

    /// The same tensors once more.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            embedding: self.embedding.shallow_clone(),
            norm: self.norm.shallow_clone(),
            head: self.head.shallow_clone(),
            eps: self.eps,
        }
    }

    /// Hidden states before the first layer: token ids i64 `[tokens]` to `[tokens, hidden]`.
    ///
    /// # Errors
    /// When libtorch refuses the operation.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(Tensor::f_embedding(&self.embedding, ids, -1, false, false)?)
    }

    /// The final norm with what its backward pass needs; no graph.
    ///
    /// # Errors
    /// When libtorch refuses the operation.
    pub fn normed(&self, hidden: Tensor) -> Result<Normed> {
        Ok(Normed::forward(hidden, &self.norm, self.eps)?)
    }

    /// The gradient of hidden states before the final norm, from that after it; adds the norm's own.
    ///
    /// # Errors
    /// When libtorch refuses the operation.
    pub fn norm_backward(&self, normed: &Normed, gradient: &Tensor) -> Result<Tensor> {
        Ok(normed.backward(&self.norm, gradient)?)
    }

    /// The output head for logits that are divided by `temperature`.
    pub fn head(&self, temperature: f64) -> Head<'_> {
        Head {
            weight: &self.head,
            temperature,
        }
    }

    /// Whether the embedding is trained.
    pub fn trains_embedding(&self) -> bool {
        self.embedding.requires_grad()
    }

    /// Adds the gradient of hidden states before the first layer, `[tokens, hidden]`, to that of the embedding.
    ///
    /// # Errors
    /// When libtorch refuses the operation.
    pub fn embed_backward(&self, ids: &Tensor, gradient: &Tensor) -> Result<()> {
        Ok(embedding_backward(&self.embedding, ids, gradient)?)
    }

    /// The final norm, `[tokens, hidden]` to the same; differentiable.
    ///
    /// # Errors
    /// When libtorch refuses the operation.
    pub fn norm(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(hidden, &self.norm, self.eps)?)
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
}

fn get(find: FindParameter<'_>, name: &str) -> Result<Tensor> {
    find(name).ok_or_else(|| Error::Config(format!("there is no parameter `{name}`")))
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, computed in f32.
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    x.f_rms_norm(weight.size(), Some(weight), eps)
}
