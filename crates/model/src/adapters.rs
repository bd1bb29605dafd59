//! The matrices of low-rank adapters: drawn, read, written, added to the weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, TchError, Tensor};

use crate::adapter_file::{self, AdapterFile};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::lora_config::{LoraConfig, LoraTarget};
use crate::model_folder::ModelFolder;
use crate::precision::Precision;
use crate::tensor_file::{self, TensorFile};
use crate::weights::first_of;

const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before the name of a module of a causal language model.
const PREFIX: &str = "base_model.model.";

/// Adapters over a base model that lies in a folder of its own.
#[derive(Debug)]
pub struct Adapters {
    config: LoraConfig,
    base: PathBuf,
    num_layers: usize,
    /// `model.layers.N.MODULE.lora_A.weight` and `...lora_B.weight`, sorted by name.
    parameters: Vec<(String, Tensor)>,
}

impl Adapters {
    /// New adapters in f32: `A` uniform within `1 / sqrt(in)` as in PEFT, `B` zero, so that the model computes what
    /// its base does. The caller has seeded libtorch's generator.
    pub(crate) fn draw(
        config: LoraConfig,
        base: PathBuf,
        model: &ModelConfig,
        device: Device,
    ) -> Result<Self> {
        let options = (Precision::F32.master(), Device::Cpu);
        let parameters = shapes(&config, model)
            .into_iter()
            .map(|(name, shape)| {
                let tensor = if name.ends_with("lora_A.weight") {
                    let bound = 1.0 / (shape[1] as f64).sqrt();
                    (Tensor::f_rand(shape, options)? * 2.0 - 1.0) * bound
                } else {
                    Tensor::f_zeros(shape, options)?
                };
                Ok((name, tensor.f_to_device(device)?))
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        Ok(Self {
            config,
            base,
            num_layers: model.num_hidden_layers,
            parameters,
        })
    }

    /// Reads an adapter folder for a base model of the configuration `model`, in f32 whatever the model computes in.
    pub(crate) fn load(
        folder: ModelFolder<'_>,
        model: &ModelConfig,
        device: Device,
    ) -> Result<Self> {
        let kind = Precision::F32.master();
        let OpenAdapters {
            file,
            config,
            weights,
            shapes,
        } = OpenAdapters::open(folder.dir(), model)?;
        let base = file.base(folder)?;
        let parameters = shapes
            .into_iter()
            .map(|(name, _)| {
                let tensor = weights.read(&format!("{PREFIX}{name}"), device, kind)?;
                Ok((name, tensor))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            config,
            base,
            num_layers: model.num_hidden_layers,
            parameters,
        })
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into an existing folder.
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        adapter_file::write(dir, &self.config, &self.base, self.num_layers)?;
        let named: Vec<(String, Tensor)> = self
            .parameters
            .iter()
            .map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.shallow_clone()))
            .collect();
        tensor_file::write(&dir.join(WEIGHTS_FILE), &named)
    }

    /// Size, scale and place.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The folder of the base model.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Every adapter's matrices, sorted by name.
    pub fn named_parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// The same matrices with gradients of their own.
    pub(crate) fn replica(&self) -> Self {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, tensor)| {
                let copy = tensor.detach();
                (name.clone(), copy.set_requires_grad(tensor.requires_grad()))
            })
            .collect();
        Self {
            config: self.config.clone(),
            base: self.base.clone(),
            num_layers: self.num_layers,
            parameters,
        }
    }

    /// The same adapters with other matrices.
    pub(crate) fn map(
        &self,
        change: impl Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<Self, TchError> {
        let changed = self
            .parameters
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), change(tensor)?)));
        Ok(Self {
            config: self.config.clone(),
            base: self.base.clone(),
            num_layers: self.num_layers,
            parameters: changed.collect::<Result<Vec<_>, TchError>>()?,
        })
    }

    pub(crate) fn set_requires_grad(&mut self, requires_grad: bool) {
        for (_, tensor) in &mut self.parameters {
            *tensor = tensor.set_requires_grad(requires_grad);
        }
    }

    /// The adapter of a module such as `model.layers.0.self_attn.q_proj`, where it has one.
    pub(crate) fn of_module(&self, module: &str) -> Option<LowRank> {
        let find = |part: &str| {
            let name = format!("{module}.{part}.weight");
            let index = self
                .parameters
                .binary_search_by(|(other, _)| other.cmp(&name))
                .ok()?;
            Some(self.parameters[index].1.shallow_clone())
        };
        Some(LowRank {
            down: find("lora_A")?,
            up: find("lora_B")?,
            scale: self.config.scale(),
        })
    }
}

/// One adapter: `x` becomes `scale * B A x`.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `A` `[rank, in]`.
    down: Tensor,
    /// `B` `[out, rank]`.
    up: Tensor,
    scale: f64,
}

impl LowRank {
    /// What the adapter adds to the projection's output; `[tokens, in]` to `[tokens, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        // Matrices that are trained are f32, whatever the model computes in.
        let inner = x.f_linear::<&Tensor>(&self.down.f_to_kind(x.kind())?, None)?;
        inner
            .f_linear::<&Tensor>(&self.up.f_to_kind(x.kind())?, None)?
            .f_mul_scalar(self.scale)
    }

    /// Writes `weight + scale * B A` into `merged`, computed in f32.
    pub(crate) fn merge_into(&self, weight: &Tensor, merged: &mut Tensor) -> Result<(), TchError> {
        let _no_grad = tch::no_grad_guard();
        let kind = Precision::F32.reduce();
        let product = self
            .up
            .f_to_kind(kind)?
            .f_matmul(&self.down.f_to_kind(kind)?)?
            .f_mul_scalar(self.scale)?;
        merged.f_copy_(&weight.f_to_kind(kind)?.f_add(&product)?)
    }
}

/// Number of values of all adapters on a model.
pub fn num_adapter_parameters(config: &LoraConfig, model: &ModelConfig) -> u64 {
    let shapes = shapes(config, model);
    let values = shapes.iter().map(|(_, [rows, columns])| rows * columns);
    u64::try_from(values.sum::<i64>()).unwrap_or(0)
}

/// Name and shape of every matrix, sorted by name.
pub(crate) fn shapes(config: &LoraConfig, model: &ModelConfig) -> Vec<(String, [i64; 2])> {
    let rank = i64::from(config.rank);
    let mut shapes = Vec::new();
    for place in config.places(model.num_hidden_layers) {
        let [rows, columns] = shape_of(place.target, model);
        let path = place.module();
        shapes.push((format!("{path}.lora_A.weight"), [rank, columns]));
        shapes.push((format!("{path}.lora_B.weight"), [rows, rank]));
    }
    shapes.sort();
    shapes
}

/// `[out, in]` of a projection in a model of this configuration.
fn shape_of(target: LoraTarget, config: &ModelConfig) -> [i64; 2] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let query = config.num_attention_heads * config.head_dim;
    let key_value = config.num_key_value_heads * config.head_dim;
    match target {
        LoraTarget::Down => [hidden, inner],
        LoraTarget::Gate | LoraTarget::Up => [inner, hidden],
        LoraTarget::Key | LoraTarget::Value => [key_value, hidden],
        LoraTarget::Output => [hidden, query],
        LoraTarget::Query => [query, hidden],
    }
}

/// An adapter folder whose tensors are those that its configuration asks for on a base model.
struct OpenAdapters {
    file: AdapterFile,
    config: LoraConfig,
    weights: TensorFile,
    /// Name and shape of every matrix.
    shapes: Vec<(String, [i64; 2])>,
}

impl OpenAdapters {
    fn open(dir: &Path, model: &ModelConfig) -> Result<Self> {
        let file = AdapterFile::read(dir)?;
        let weights = TensorFile::open(&dir.join(WEIGHTS_FILE))?;
        let config = file.config(model.num_hidden_layers)?;
        let shapes = shapes(&config, model);
        check_shapes(dir, &weights, &shapes)?;
        Ok(Self {
            file,
            config,
            weights,
            shapes,
        })
    }
}

/// Checks an adapter folder for a base model without reading its matrices; gives their number.
pub(crate) fn check(dir: &Path, model: &ModelConfig) -> Result<usize> {
    Ok(OpenAdapters::open(dir, model)?.shapes.len())
}

fn check_shapes(dir: &Path, weights: &TensorFile, expected: &[(String, [i64; 2])]) -> Result<()> {
    let mut wanted: BTreeMap<String, &[i64; 2]> = expected
        .iter()
        .map(|(name, shape)| (format!("{PREFIX}{name}"), shape))
        .collect();
    let mut problems = Vec::new();
    for (name, shape) in weights.shapes() {
        match wanted.remove(name) {
            None => problems.push(format!("unexpected `{name}`")),
            Some(expected) if expected.as_slice() != shape => problems.push(format!(
                "`{name}` has shape {shape:?}, expected {expected:?}"
            )),
            Some(_) => {
                if let Some(dtype) = weights.unread_dtype(name) {
                    problems.push(format!("`{name}` has type {dtype}"));
                }
            }
        }
    }
    problems.extend(wanted.keys().map(|name| format!("missing `{name}`")));
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Adapter {
        path: dir.join(WEIGHTS_FILE),
        reason: first_of(problems),
    })
}
