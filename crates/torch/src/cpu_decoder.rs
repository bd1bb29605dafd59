//! A decoder of the Llama and Qwen families on the CPU, a step at a time: packed weights, a paged KV cache, sampling.
#![expect(unsafe_code, reason = "calls the C++ side")]

use std::ffi::CStr;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::ffi::{self, RawCache, RawDecoder, RawStep};
use crate::sampling::{SampledRow, SamplingBatch};

const OP: &str = "cpu_decoder";

/// Tokens that a block of the cache holds are a multiple of this.
pub const CPU_BLOCK_TOKENS: usize = 16;

/// Sizes of a decoder, and what its kernels compute with.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct CpuDecoderConfig {
    /// Number of layers.
    pub num_layers: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the feed-forward blocks.
    pub intermediate_size: i64,
    /// Number of query heads.
    pub num_heads: i64,
    /// Number of key-value heads.
    pub num_kv_heads: i64,
    /// Width of a head: a multiple of 16 up to 256.
    pub head_dim: i64,
    /// Number of token ids.
    pub vocab_size: i64,
    /// Epsilon of the norms.
    pub eps: f64,
    is_bf16: i32,
    most_isa: i32,
}

/// Instruction sets of the CPU kernels, each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum CpuKernels {
    /// Baseline instructions of the architecture.
    Generic = 0,
    /// AVX2 and FMA.
    Avx2 = 1,
    /// AVX-512.
    Avx512 = 2,
    /// bf16 products: AMX tiles, else AVX-512 BF16.
    NativeBf16 = 3,
    /// Tiles on plain arrays: slow, to test the code around AMX where there is none.
    TilesEmulated = 4,
}

impl CpuDecoderConfig {
    /// Sizes in the order of the fields, computing in f32 with the best kernels of this processor.
    #[must_use]
    pub fn new(sizes: [i64; 7], eps: f64) -> Self {
        let [
            num_layers,
            hidden_size,
            intermediate_size,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
        ] = sizes;
        Self {
            num_layers,
            hidden_size,
            intermediate_size,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
            eps,
            is_bf16: 0,
            most_isa: -1,
        }
    }

    /// With weights and cache in bf16, and operands of products rounded to it; sums, norms, attention weights and the residual
    /// stream stay f32.
    #[must_use]
    pub fn in_bf16(mut self, is_bf16: bool) -> Self {
        self.is_bf16 = i32::from(is_bf16);
        self
    }

    /// With no better kernels than these.
    #[must_use]
    pub fn with_kernels(mut self, most: CpuKernels) -> Self {
        self.most_isa = most as i32;
        self
    }

    /// Whether the kernels can compute a decoder of these sizes.
    pub fn is_supported(&self) -> bool {
        let block = i64::try_from(CPU_BLOCK_TOKENS).unwrap_or(i64::MAX);
        self.head_dim % block == 0
            && self.head_dim <= MAX_HEAD_DIM
            && self.num_kv_heads > 0
            && self.num_heads % self.num_kv_heads == 0
            && self.num_heads / self.num_kv_heads <= MAX_GROUP
    }

    /// Bytes of keys and values of one token in all layers.
    pub fn token_bytes(&self) -> u64 {
        let element_bytes = if self.is_bf16 == 0 { 4 } else { 2 };
        let values = 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes;
        u64::try_from(values).unwrap_or(u64::MAX)
    }
}

const MAX_HEAD_DIM: i64 = 256;

/// Query heads of one key-value head.
const MAX_GROUP: i64 = 64;

/// Parameters of a decoder, in the order of the C++ side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum CpuParameter {
    /// Token embedding `[vocab, hidden]`.
    Embedding = 0,
    /// Output head `[vocab, hidden]`.
    Head,
    /// Norm after the last layer `[hidden]`.
    FinalNorm,
    /// Norm before attention `[hidden]`.
    InputNorm,
    /// Norm before the feed-forward block `[hidden]`.
    PostNorm,
    /// Norm of query heads `[head_dim]`, where the family has one.
    QueryNorm,
    /// Norm of key heads `[head_dim]`, where the family has one.
    KeyNorm,
    /// Query, key and value projections, three tensors `[out, hidden]`.
    Qkv,
    /// Output projection of attention `[hidden, heads * head_dim]`.
    Output,
    /// Gate and up projections, two tensors `[intermediate, hidden]`.
    GateUp,
    /// Down projection `[hidden, intermediate]`.
    Down,
    /// Biases of query, key and value, three tensors.
    QkvBias,
    /// Bias of the output projection.
    OutputBias,
    /// Biases of gate and up, two tensors.
    GateUpBias,
    /// Bias of the down projection.
    DownBias,
}

/// Rows of one step, as `asyncthink_model::StepBatch` has them, with the rotary table.
#[derive(Clone, Copy, Debug)]
pub struct CpuStep<'a> {
    /// Token ids `[rows]`.
    pub ids: &'a [i64],
    /// Number of rows before each sequence `[sequences + 1]`.
    pub cu_rows: &'a [i32],
    /// Position of each sequence's first row `[sequences]`.
    pub first_positions: &'a [i32],
    /// Number of blocks before each sequence's block table `[sequences + 1]`.
    pub cu_blocks: &'a [i32],
    /// Block tables end to end.
    pub blocks: &'a [i32],
    /// Blocks `[from, to]` that are copied before any row is written.
    pub block_copies: &'a [[i32; 2]],
    /// Rows whose next token is wanted `[samples]`.
    pub sample_rows: &'a [i32],
    /// How they are sampled `[samples]`.
    pub sampling: &'a SamplingBatch,
    /// Cosines `[positions, head_dim / 2]`.
    pub cos: &'a [f32],
    /// Sines `[positions, head_dim / 2]`.
    pub sin: &'a [f32],
}

/// Weights packed for the kernels of this processor.
#[derive(Debug)]
pub struct CpuDecoder {
    raw: *mut RawDecoder,
    config: CpuDecoderConfig,
}

// SAFETY: the C++ side has no thread of its own and keeps nothing of the thread that made it.
unsafe impl Send for CpuDecoder {}

impl CpuDecoder {
    /// A decoder without weights: every parameter must be set before a step.
    ///
    /// # Errors
    /// For sizes that the kernels do not support.
    pub fn new(config: CpuDecoderConfig) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: both live across the call; on success `raw` is a decoder that nobody else owns.
        unsafe {
            let message = ffi::asyncthink_cpu_decoder_new((&raw const config).cast(), &raw mut raw);
            ffi::check(OP, message)?;
        }
        Ok(Self { raw, config })
    }

    /// Sizes and number type.
    pub fn config(&self) -> &CpuDecoderConfig {
        &self.config
    }

    /// Name of the kernels in use, such as `avx512`.
    pub fn kernels(&self) -> &'static str {
        // SAFETY: the decoder lives, and the name is a static string.
        let name = unsafe { CStr::from_ptr(ffi::asyncthink_cpu_decoder_kernels(self.raw)) };
        name.to_str().unwrap_or("unknown")
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> u64 {
        // SAFETY: the decoder lives.
        unsafe { ffi::asyncthink_cpu_decoder_bytes(self.raw) }
    }

    /// Sets a parameter of layer `layer` (0 for those of no layer) from f32 or bf16 tensors on the CPU; the values are copied.
    ///
    /// # Errors
    /// For another shape, kind, device or number of tensors.
    pub fn set(
        &mut self,
        parameter: CpuParameter,
        layer: usize,
        tensors: &[&Tensor],
    ) -> Result<()> {
        let contiguous: Vec<Tensor> = tensors.iter().map(|one| one.contiguous()).collect();
        for tensor in &contiguous {
            let is_known = matches!(tensor.kind(), Kind::Float | Kind::BFloat16);
            if tensor.device() != Device::Cpu || !is_known {
                return Err(Error::torch(OP, "weights must be f32 or bf16 on the CPU"));
            }
        }
        let pointers: Vec<_> = contiguous.iter().map(Tensor::as_ptr).collect();
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        // SAFETY: the decoder and the tensors live across the call, which checks shapes and copies the values.
        unsafe {
            let message = ffi::asyncthink_cpu_decoder_set(
                self.raw,
                parameter as i32,
                count(layer),
                pointers.as_ptr(),
                count(pointers.len()),
            );
            ffi::check(OP, message)
        }
    }

    /// Runs one step with `num_threads` threads and samples.
    ///
    /// In f32 a row's result depends on its own tokens alone, to the bit: not on the other rows, on blocks, or on threads.
    ///
    /// # Errors
    /// When the parts of the step contradict each other or the cache, or a weight was never set.
    pub fn step(
        &mut self,
        cache: &mut CpuKvCache,
        step: &CpuStep<'_>,
        num_threads: usize,
    ) -> Result<Vec<SampledRow>> {
        self.run(cache, step, num_threads, std::ptr::null_mut())
    }

    /// [`Self::step`] with the logits `[samples, vocab]` that were sampled from.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_with_logits(
        &mut self,
        cache: &mut CpuKvCache,
        step: &CpuStep<'_>,
        num_threads: usize,
    ) -> Result<(Vec<SampledRow>, Vec<f32>)> {
        let vocab = usize::try_from(self.config.vocab_size).unwrap_or(0);
        let mut logits = vec![0.0; step.sample_rows.len() * vocab];
        let sampled = self.run(cache, step, num_threads, logits.as_mut_ptr())?;
        Ok((sampled, logits))
    }

    fn run(
        &mut self,
        cache: &mut CpuKvCache,
        step: &CpuStep<'_>,
        num_threads: usize,
        logits: *mut f32,
    ) -> Result<Vec<SampledRow>> {
        step.check()?;
        let half = usize::try_from(self.config.head_dim / 2)
            .unwrap_or(1)
            .max(1);
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let raw = RawStep {
            ids: step.ids.as_ptr(),
            cu_rows: step.cu_rows.as_ptr(),
            first_positions: step.first_positions.as_ptr(),
            cu_blocks: step.cu_blocks.as_ptr(),
            blocks: step.blocks.as_ptr(),
            block_copies: step.block_copies.as_ptr().cast(),
            sample_rows: step.sample_rows.as_ptr(),
            sampling: step.sampling.rows.as_ptr(),
            cu_banned: step.sampling.cu_banned.as_ptr(),
            banned: step.sampling.banned.as_ptr(),
            cos: step.cos.as_ptr(),
            sin: step.sin.as_ptr(),
            num_positions: count(step.cos.len().min(step.sin.len()) / half),
            num_sequences: count(step.first_positions.len()),
            num_block_copies: count(step.block_copies.len()),
            num_samples: count(step.sample_rows.len()),
            num_threads: i32::try_from(num_threads.max(1)).unwrap_or(1),
            logits,
        };
        let nothing = SampledRow {
            token: 0,
            logprob: 0.0,
            raw_logprob: 0.0,
        };
        let mut sampled = vec![nothing; step.sample_rows.len()];
        // SAFETY: `check` has seen that the slices have the lengths that the offsets name, the C++ side checks that all weights are set, that the cache is of this decoder's sizes, and every block, id, row and
        // position against the cache and the table; `sampled` and `logits` have a place for every sample.
        unsafe {
            let message = ffi::asyncthink_cpu_decoder_step(
                self.raw,
                cache.raw,
                &raw const raw,
                sampled.as_mut_ptr(),
            );
            ffi::check(OP, message)?;
        }
        Ok(sampled)
    }
}

impl Drop for CpuDecoder {
    fn drop(&mut self) {
        // SAFETY: the decoder is ours and is not used again.
        unsafe { ffi::asyncthink_cpu_decoder_free(self.raw) };
    }
}

impl CpuStep<'_> {
    /// Checks that offsets lie in the slices that they divide.
    fn check(&self) -> Result<()> {
        let sequences = self.first_positions.len();
        let divides = |offsets: &[i32], parts: usize, total: usize| {
            offsets.len() == parts + 1
                && offsets.first() == Some(&0)
                && offsets.windows(2).all(|ends| ends[0] <= ends[1])
                && offsets.last().and_then(|&last| usize::try_from(last).ok()) == Some(total)
        };
        let samples = self.sample_rows.len();
        if !divides(self.cu_rows, sequences, self.ids.len())
            || !divides(self.cu_blocks, sequences, self.blocks.len())
            || self.sampling.rows.len() != samples
            || !divides(
                &self.sampling.cu_banned,
                samples,
                self.sampling.banned.len(),
            )
        {
            return Err(Error::torch(
                OP,
                "the offsets of a step do not divide its rows",
            ));
        }
        Ok(())
    }
}

/// Keys and values of all layers in blocks, in memory that is taken when it is first written.
#[derive(Debug)]
pub struct CpuKvCache {
    raw: *mut RawCache,
    num_blocks: usize,
}

// SAFETY: as for the decoder.
unsafe impl Send for CpuKvCache {}

impl CpuKvCache {
    /// A cache of `num_blocks` blocks of `block_size` tokens, a multiple of [`CPU_BLOCK_TOKENS`].
    ///
    /// # Errors
    /// For another block size, or when the address space cannot be had.
    pub fn new(config: &CpuDecoderConfig, num_blocks: usize, block_size: usize) -> Result<Self> {
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let mut raw = std::ptr::null_mut();
        // SAFETY: all live across the call; on success `raw` is a cache that nobody else owns.
        unsafe {
            let message = ffi::asyncthink_cpu_cache_new(
                std::ptr::from_ref(config).cast(),
                count(num_blocks),
                count(block_size),
                &raw mut raw,
            );
            ffi::check(OP, message)?;
        }
        Ok(Self { raw, num_blocks })
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }
}

impl Drop for CpuKvCache {
    fn drop(&mut self) {
        // SAFETY: the cache is ours and is not used again.
        unsafe { ffi::asyncthink_cpu_cache_free(self.raw) };
    }
}
