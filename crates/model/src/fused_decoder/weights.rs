//! Weights of a decoder as the fused step uses them: those of the decoder itself where it computes in the same kind, with its
//! adapters apart; else copies, joined where one product serves several projections, with adapters merged.

use tch::{Device, Kind, Tensor};

use crate::adapters::LowRank;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::{Error, Result};

/// A projection `[out, in]`, or several of one input whose outputs lie side by side.
#[derive(Debug)]
pub(super) struct Projection(Vec<Part>);

/// A projection with or without a bias and an adapter.
#[derive(Debug)]
struct Part {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<LowRank>,
}

impl Part {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let output = x.f_linear(&self.weight, self.bias.as_ref())?;
        Ok(match &self.adapter {
            Some(adapter) => output.f_add(&adapter.forward(x)?)?,
            None => output,
        })
    }
}

impl Projection {
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if let [part] = self.0.as_slice() {
            return part.apply(x);
        }
        let outputs = self.0.iter().map(|part| part.apply(x));
        Ok(Tensor::f_cat(&outputs.collect::<Result<Vec<_>>>()?, -1)?)
    }
}

#[derive(Debug)]
pub(super) struct LayerWeights {
    pub(super) input_norm: Tensor,
    pub(super) qkv: Projection,
    pub(super) query_key_norm: Option<[Tensor; 2]>,
    pub(super) output: Projection,
    pub(super) post_norm: Tensor,
    pub(super) gate_up: Projection,
    pub(super) down: Projection,
}

#[derive(Debug)]
pub(super) struct Weights {
    pub(super) embedding: Tensor,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) norm: Tensor,
    pub(super) head: Tensor,
}

impl Weights {
    /// Room for the weights of a model.
    pub(super) fn new(config: &ModelConfig, kind: Kind, device: Device) -> Result<Self> {
        let shapes = config.parameter_shapes();
        let shape_of = |name: &str| {
            let found = shapes.iter().find(|(other, _)| other == name);
            found.map(|(_, shape)| shape.clone())
        };
        let empty = |shape: &[i64]| Tensor::f_empty(shape, (kind, device));
        let single = |name: &str| -> Result<Tensor> {
            let shape = shape_of(name).ok_or_else(|| missing(name))?;
            Ok(empty(&shape)?)
        };
        let embedding = single("model.embed_tokens.weight")?;
        let head = match shape_of("lm_head.weight") {
            Some(shape) => empty(&shape)?,
            None => embedding.shallow_clone(),
        };
        let layers = (0..config.num_hidden_layers).map(|layer| {
            let norm = |name: &str| single(&path(layer, name, "weight"));
            let joined = |names: &[&str]| -> Result<Projection> {
                let of_kind = |kind: &str| -> Option<Vec<i64>> {
                    let shapes = names
                        .iter()
                        .filter_map(|name| shape_of(&path(layer, name, kind)));
                    shapes.reduce(|mut all, shape| {
                        all[0] += shape[0];
                        all
                    })
                };
                let weight = of_kind("weight").ok_or_else(|| missing(names[0]))?;
                let bias = of_kind("bias").map(|shape| empty(&shape)).transpose()?;
                Ok(Projection(vec![Part {
                    weight: empty(&weight)?,
                    bias,
                    adapter: None,
                }]))
            };
            let query_key_norm = if config.has_query_key_norm {
                Some([norm(QUERY_NORM)?, norm(KEY_NORM)?])
            } else {
                None
            };
            Ok(LayerWeights {
                input_norm: norm(INPUT_NORM)?,
                qkv: joined(&QKV)?,
                query_key_norm,
                output: joined(&OUTPUT)?,
                post_norm: norm(POST_NORM)?,
                gate_up: joined(&GATE_UP)?,
                down: joined(&DOWN)?,
            })
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            norm: single("model.norm.weight")?,
            embedding,
            head,
        })
    }

    /// The tensors of a decoder: what is written into them is seen at once.
    pub(super) fn shared(decoder: &Decoder) -> Result<Self> {
        let config = decoder.config();
        let need = |name: &str| decoder.parameter(name).ok_or_else(|| missing(name));
        let embedding = need("model.embed_tokens.weight")?;
        let layers = (0..config.num_hidden_layers).map(|layer| {
            let norm = |name: &str| need(&path(layer, name, "weight"));
            let several = |names: &[&str]| -> Result<Projection> {
                let parts = names.iter().map(|name| {
                    let weight = path(layer, name, "weight");
                    Ok(Part {
                        weight: need(&weight)?,
                        bias: decoder.parameter(&path(layer, name, "bias")),
                        adapter: decoder.adapter_of(&weight),
                    })
                });
                Ok(Projection(parts.collect::<Result<_>>()?))
            };
            let query_key_norm = if config.has_query_key_norm {
                Some([norm(QUERY_NORM)?, norm(KEY_NORM)?])
            } else {
                None
            };
            Ok(LayerWeights {
                input_norm: norm(INPUT_NORM)?,
                qkv: several(&QKV)?,
                query_key_norm,
                output: several(&OUTPUT)?,
                post_norm: norm(POST_NORM)?,
                gate_up: several(&GATE_UP)?,
                down: several(&DOWN)?,
            })
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            norm: need("model.norm.weight")?,
            head: match decoder.parameter("lm_head.weight") {
                Some(head) => head,
                None => embedding.shallow_clone(),
            },
            embedding,
        })
    }

    /// Where the tensors lie that a recorded step reads. Adapters move with their matrices, which are trained in place.
    pub(super) fn addresses(&self) -> Vec<usize> {
        let mut all = vec![&self.embedding, &self.norm, &self.head];
        for layer in &self.layers {
            all.extend([&layer.input_norm, &layer.post_norm]);
            for projection in [&layer.qkv, &layer.output, &layer.gate_up, &layer.down] {
                all.extend(projection.0.iter().map(|part| &part.weight));
            }
        }
        all.iter()
            .map(|tensor| tensor.data_ptr() as usize)
            .collect()
    }

    /// Copies the weights of a decoder as they are now, in place: what was recorded with these tensors stays valid.
    pub(super) fn load(&mut self, decoder: &Decoder) -> Result<()> {
        if decoder.adapters().is_some() {
            return self.load(&decoder.merged()?);
        }
        let _no_grad = tch::no_grad_guard();
        let parameters = decoder.named_parameters();
        let find = |name: &str| {
            let index = parameters.partition_point(|(other, _)| other.as_str() < name);
            let found = parameters.get(index).filter(|(other, _)| other == name);
            found.map(|(_, tensor)| tensor.detach())
        };
        let copy = |target: &Tensor, name: &str| -> Result<()> {
            let source = find(name).ok_or_else(|| missing(name))?;
            Ok(target.shallow_clone().f_copy_(&source)?)
        };
        let join = |target: &Projection, layer: usize, names: &[&str]| -> Result<()> {
            let Some(target) = target.0.first() else {
                return Ok(());
            };
            for (tensor, kind) in [
                (Some(&target.weight), "weight"),
                (target.bias.as_ref(), "bias"),
            ] {
                let Some(tensor) = tensor else { continue };
                let mut first = 0;
                for name in names {
                    let name = path(layer, name, kind);
                    let Some(source) = find(&name) else {
                        // A projection without a bias beside one that has one.
                        return Err(missing(&name));
                    };
                    let rows = source.size()[0];
                    tensor.f_narrow(0, first, rows)?.f_copy_(&source)?;
                    first += rows;
                }
            }
            Ok(())
        };
        copy(&self.embedding, "model.embed_tokens.weight")?;
        copy(&self.norm, "model.norm.weight")?;
        if find("lm_head.weight").is_some() {
            copy(&self.head, "lm_head.weight")?;
        }
        for (layer, weights) in self.layers.iter().enumerate() {
            copy(&weights.input_norm, &path(layer, INPUT_NORM, "weight"))?;
            copy(&weights.post_norm, &path(layer, POST_NORM, "weight"))?;
            if let Some([query, key]) = &weights.query_key_norm {
                copy(query, &path(layer, QUERY_NORM, "weight"))?;
                copy(key, &path(layer, KEY_NORM, "weight"))?;
            }
            join(&weights.qkv, layer, &QKV)?;
            join(&weights.output, layer, &OUTPUT)?;
            join(&weights.gate_up, layer, &GATE_UP)?;
            join(&weights.down, layer, &DOWN)?;
        }
        Ok(())
    }
}

const INPUT_NORM: &str = "input_layernorm";
const POST_NORM: &str = "post_attention_layernorm";
const QUERY_NORM: &str = "self_attn.q_norm";
const KEY_NORM: &str = "self_attn.k_norm";
const QKV: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
const OUTPUT: [&str; 1] = ["self_attn.o_proj"];
const GATE_UP: [&str; 2] = ["mlp.gate_proj", "mlp.up_proj"];
const DOWN: [&str; 1] = ["mlp.down_proj"];

fn path(layer: usize, name: &str, kind: &str) -> String {
    format!("model.layers.{layer}.{name}.{kind}")
}

fn missing(name: &str) -> Error {
    Error::Config(format!("there is no parameter `{name}`"))
}
