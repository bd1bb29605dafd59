//! A decoder packed for the CPU kernels: one call a step, from token ids to sampled tokens.

use asyncthink_torch::{
    CpuDecoder, CpuDecoderConfig, CpuKvCache, CpuParameter, CpuStep, SampledRow, SamplingBatch,
    num_threads,
};
use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::positions::Positions;
use crate::step_batch::StepBatch;

/// Rows of the rotary table grow by this many positions at a time.
const ROTARY_STEP: usize = 1024;

/// Weights of a [`Decoder`] in the layout of the CPU kernels, in f32 or bf16, with adapters merged.
///
/// In bf16, weights, cached keys and values, and the operands of products are bf16; sums, norms, attention weights and the
/// residual stream are f32.
#[derive(Debug)]
pub struct PackedDecoder {
    decoder: CpuDecoder,
    positions: Positions,
    cos: Vec<f32>,
    sin: Vec<f32>,
    num_positions: usize,
    max_positions: usize,
}

/// Sizes of a model as the kernels take them.
fn cpu_config(config: &ModelConfig, kind: Kind) -> CpuDecoderConfig {
    let sizes = [
        i64::try_from(config.num_hidden_layers).unwrap_or(0),
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
    ];
    CpuDecoderConfig::new(sizes, config.rms_norm_eps).in_bf16(kind == Kind::BFloat16)
}

impl PackedDecoder {
    /// Whether there are kernels for a model of this configuration and number type.
    pub fn supports(config: &ModelConfig, kind: Kind) -> bool {
        matches!(kind, Kind::Float | Kind::BFloat16) && cpu_config(config, kind).is_supported()
    }

    /// A decoder without weights, computing in `kind`: f32 or bf16.
    ///
    /// # Errors
    /// Where [`Self::supports`] says no.
    pub fn new(config: &ModelConfig, kind: Kind) -> Result<Self> {
        Ok(Self {
            decoder: CpuDecoder::new(cpu_config(config, kind))?,
            positions: Positions::new(config, Device::Cpu, Kind::Float)?,
            cos: Vec::new(),
            sin: Vec::new(),
            num_positions: 0,
            max_positions: usize::try_from(config.max_position_embeddings).unwrap_or(usize::MAX),
        })
    }

    /// Name of the kernels in use, such as `avx512`.
    pub fn kernels(&self) -> &'static str {
        self.decoder.kernels()
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> u64 {
        self.decoder.weight_bytes()
    }

    /// Bytes of keys and values of one token in all layers.
    pub fn token_bytes(&self) -> u64 {
        self.decoder.config().token_bytes()
    }

    /// An empty cache for this decoder.
    ///
    /// # Errors
    /// When a block does not hold a multiple of 16 tokens, or the memory cannot be had.
    pub fn cache(&self, num_blocks: usize, block_size: usize) -> Result<CpuKvCache> {
        Ok(CpuKvCache::new(
            self.decoder.config(),
            num_blocks,
            block_size,
        )?)
    }

    /// Copies the weights of a decoder as they are now.
    ///
    /// # Errors
    /// When they are not on the CPU, or not of the configuration that this was made for.
    pub fn pack(&mut self, decoder: &Decoder) -> Result<()> {
        if decoder.adapters().is_some() {
            return self.pack(&decoder.merged()?);
        }
        let parameters = decoder.named_parameters();
        let find = |name: &str| {
            let index = parameters.partition_point(|(other, _)| other.as_str() < name);
            let found = parameters.get(index).filter(|(other, _)| other == name);
            found.map(|(_, tensor)| tensor.detach())
        };
        let need = |name: &str| {
            find(name).ok_or_else(|| Error::Config(format!("there is no parameter `{name}`")))
        };
        let mut set = |parameter, layer, tensors: &[Tensor]| -> Result<()> {
            let tensors: Vec<&Tensor> = tensors.iter().collect();
            Ok(self.decoder.set(parameter, layer, &tensors)?)
        };
        let embedding = need("model.embed_tokens.weight")?;
        let head = find("lm_head.weight").unwrap_or_else(|| embedding.shallow_clone());
        set(CpuParameter::Embedding, 0, &[embedding])?;
        set(CpuParameter::Head, 0, &[head])?;
        set(CpuParameter::FinalNorm, 0, &[need("model.norm.weight")?])?;
        for layer in 0..decoder.config().num_hidden_layers {
            for (parameter, names) in NORMS {
                let path = format!("model.layers.{layer}.{names}.weight");
                if let Some(weight) = find(&path) {
                    set(parameter, layer, &[weight])?;
                }
            }
            for (weights, biases, names) in PROJECTIONS {
                let path = |name: &str, kind: &str| format!("model.layers.{layer}.{name}.{kind}");
                let of_kind = |kind| names.iter().map(move |name| path(name, kind));
                let found = of_kind("weight").map(|name| need(&name));
                set(weights, layer, &found.collect::<Result<Vec<_>>>()?)?;
                let found: Vec<Tensor> = of_kind("bias").filter_map(|name| find(&name)).collect();
                if !found.is_empty() {
                    set(biases, layer, &found)?;
                }
            }
        }
        Ok(())
    }

    /// Feeds the rows of a step to the cache and samples, with as many threads as libtorch's operations use.
    ///
    /// # Errors
    /// When the parts of the step contradict each other or the cache.
    pub fn step(
        &mut self,
        cache: &mut CpuKvCache,
        batch: &StepBatch,
        sampling: &SamplingBatch,
    ) -> Result<Vec<SampledRow>> {
        self.grow_rotary(batch.num_positions())?;
        let step = CpuStep {
            ids: &batch.ids,
            cu_rows: &batch.cu_rows,
            first_positions: &batch.first_positions,
            cu_blocks: &batch.cu_blocks,
            blocks: &batch.blocks,
            block_copies: &batch.block_copies,
            sample_rows: &batch.sample_rows,
            sampling,
            cos: &self.cos,
            sin: &self.sin,
        };
        Ok(self.decoder.step(cache, &step, num_threads())?)
    }

    /// Makes the table hold so many positions.
    fn grow_rotary(&mut self, num_positions: usize) -> Result<()> {
        if num_positions <= self.num_positions {
            return Ok(());
        }
        let wanted = num_positions.next_multiple_of(ROTARY_STEP);
        let wanted = wanted.min(self.max_positions.max(num_positions));
        (self.cos, self.sin) = self.positions.table(wanted)?;
        self.num_positions = wanted;
        Ok(())
    }
}

/// Norms of a layer; those of heads only where the family has them.
const NORMS: [(CpuParameter, &str); 4] = [
    (CpuParameter::InputNorm, "input_layernorm"),
    (CpuParameter::PostNorm, "post_attention_layernorm"),
    (CpuParameter::QueryNorm, "self_attn.q_norm"),
    (CpuParameter::KeyNorm, "self_attn.k_norm"),
];

/// Projections of a layer that are packed together, with their biases.
const PROJECTIONS: [(CpuParameter, CpuParameter, &[&str]); 4] = [
    (
        CpuParameter::Qkv,
        CpuParameter::QkvBias,
        &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ),
    (
        CpuParameter::Output,
        CpuParameter::OutputBias,
        &["self_attn.o_proj"],
    ),
    (
        CpuParameter::GateUp,
        CpuParameter::GateUpBias,
        &["mlp.gate_proj", "mlp.up_proj"],
    ),
    (
        CpuParameter::Down,
        CpuParameter::DownBias,
        &["mlp.down_proj"],
    ),
];
