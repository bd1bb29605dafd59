//! A decoder on a GPU: fused kernels between the products of libtorch, a paged cache, sampling on the device. Decoding
//! steps are recorded once as CUDA graphs and started again; of a step the host waits for the sampled tokens only.

mod inputs;
mod weights;

use std::collections::BTreeMap;

use asyncthink_torch::{
    AttentionPath, AttentionRows, CudaGraph, Kernels, MAX_KERNEL_VOCAB, PagedAttention,
    PartialSums, PinnedBuffer, RopeAndCache, SAMPLED_ROW_BYTES, SampledRow, SamplingBatch,
    read_sampled_rows,
};
use tch::{Device, Kind, Tensor};

use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::step_batch::StepBatch;
use inputs::{InputViews, Room, StepInputs, Tiles, to_size};
use weights::{LayerWeights, Weights};

/// Tokens of a block of the kernels' cache: a multiple of this.
const BLOCK_TOKENS: usize = 16;

/// Blocks that the cache begins with; it doubles up to its limit.
const FIRST_BLOCKS: usize = 1024;

/// Most rows of a recorded step. Larger steps keep a GPU busy while the host prepares the next.
const MAX_RECORDED_ROWS: usize = 512;

/// Sequences with so many rows share out their keys; with more, their rows alone are enough for a GPU.
const MAX_SHORT_ROWS: i64 = 64;

/// Most parts of a context.
const MAX_SPLITS: i64 = 32;

/// Room for partial results of a step that is not recorded, in numbers: 64 MiB.
const MAX_PARTIAL: i64 = 1 << 24;

/// A decoder for [`StepBatch`]es on a GPU, in f32 or bf16, with a cache. It reads the weights of the decoder that it is lent where
/// that computes in the same kind, and keeps copies, adapters merged, where not.
///
/// In bf16 the operands of products, the residual stream and the cache are bf16; sums, norms, rotations, attention
/// scores and logits are f32.
#[derive(Debug)]
pub struct FusedDecoder {
    model: Model,
    records_steps: bool,
    weights_are_current: bool,
    cache: KvCache,
    max_blocks: usize,
    decoding: BTreeMap<usize, Decoding>,
    decoding_room: DecodingRoom,
    /// The host's side of steps that are not recorded.
    mixed: Option<PinnedBuffer>,
    results: PinnedBuffer,
}

/// Configuration and weights: constant from step to step but for the values of the weights.
#[derive(Debug)]
struct Model {
    kernels: Kernels,
    config: ModelConfig,
    kind: Kind,
    block_size: usize,
    /// `None` before the first step.
    weights: Option<Weights>,
    /// Whether the weights are the decoder's own.
    shares_weights: bool,
    frequencies: Tensor,
    attention_factor: f64,
    has_matrix_attention: bool,
    /// Whether a product of this kind can give f32.
    has_wide_products: bool,
    multiprocessors: i64,
}

/// Room of all recorded steps, besides rows: these are recorded anew when it grows.
#[derive(Clone, Copy, Debug)]
struct DecodingRoom {
    max_blocks: usize,
    banned: usize,
}

/// A decoding step of up to so many rows, one of each sequence.
#[derive(Debug)]
struct Decoding {
    // The graph is dropped before what it uses.
    graph: Option<(CudaGraph, Tensor)>,
    inputs: StepInputs,
    views: InputViews,
    partial: PartialSums,
}

/// Which rows a step has, for attention and sampling.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One row of each sequence, all sampled in order.
    Decoding,
    /// Anything.
    Mixed,
}

impl Model {
    fn weights(&self) -> Result<&Weights> {
        let missing = || Error::StepBatch("there are no weights yet".to_owned());
        self.weights.as_ref().ok_or_else(missing)
    }

    /// Takes over the weights of a decoder as they are now. Says whether they lie elsewhere than before, so that what was
    /// recorded reads what is gone.
    fn take_weights(&mut self, decoder: &Decoder) -> Result<bool> {
        let before = self.weights.as_ref().map(Weights::addresses);
        let device = self.kernels.device();
        if decoder.kind() == self.kind && decoder.device() == device {
            self.weights = Some(Weights::shared(decoder)?);
        } else {
            let mut copies = match self.weights.take() {
                Some(weights) if before.is_some() && !self.shares_weights => weights,
                _ => Weights::new(&self.config, self.kind, device)?,
            };
            copies.load(decoder)?;
            self.weights = Some(copies);
        }
        self.shares_weights = decoder.kind() == self.kind && decoder.device() == device;
        Ok(self.weights.as_ref().map(Weights::addresses) != before)
    }
}

impl FusedDecoder {
    /// Whether there are kernels for a model of this configuration, computing in `kind`, with blocks of this size.
    pub fn supports(config: &ModelConfig, kind: Kind, block_size: usize) -> bool {
        let group = config.num_attention_heads / config.num_key_value_heads.max(1);
        Kernels::supports(kind, config.head_dim)
            && group * config.num_key_value_heads == config.num_attention_heads
            && config.vocab_size <= MAX_KERNEL_VOCAB
            && block_size > 0
            && block_size.is_multiple_of(BLOCK_TOKENS)
    }

    /// A decoder without weights and with an empty cache.
    ///
    /// # Errors
    /// When the memory cannot be had, or CUDA fails.
    pub fn new(
        kernels: Kernels,
        config: &ModelConfig,
        kind: Kind,
        block_size: usize,
    ) -> Result<Self> {
        let device = kernels.device();
        let group = config.num_attention_heads / config.num_key_value_heads.max(1);
        let model = Model {
            kernels,
            kind,
            block_size,
            weights: None,
            shares_weights: false,
            frequencies: config
                .rope
                .frequencies(config.head_dim)?
                .f_to_device(device)?,
            attention_factor: config.rope.attention_factor().unwrap_or(1.0),
            has_matrix_attention: kernels.has_matrix_attention(kind, config.head_dim, group),
            has_wide_products: has_wide_products(kind, device),
            multiprocessors: to_size(kernels.multiprocessors()?),
            config: config.clone(),
        };
        Ok(Self {
            cache: KvCache::new(config, 0, block_size, kind, device)?,
            model,
            records_steps: true,
            weights_are_current: false,
            max_blocks: usize::MAX,
            decoding: BTreeMap::new(),
            decoding_room: DecodingRoom {
                max_blocks: 64,
                banned: 1024,
            },
            mixed: None,
            results: PinnedBuffer::new(kernels, 64 * SAMPLED_ROW_BYTES)?,
        })
    }

    /// The decoder with decoding steps recorded as CUDA graphs, the default, or run kernel by kernel.
    #[must_use]
    pub fn with_graphs(mut self, records_steps: bool) -> Self {
        self.records_steps = records_steps;
        self
    }

    /// Bytes of keys and values of one block in all layers.
    pub fn block_bytes(&self) -> u64 {
        KvCache::block_bytes(&self.model.config, self.model.block_size, self.model.kind)
    }

    /// Empties the cache, and limits it to `max_blocks` blocks. It grows with those that are used.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn allocate(&mut self, max_blocks: usize) -> Result<()> {
        self.decoding.clear();
        self.max_blocks = max_blocks;
        let Model {
            config,
            block_size,
            kind,
            kernels,
            ..
        } = &self.model;
        self.cache = KvCache::new(config, 0, *block_size, *kind, kernels.device())?;
        Ok(())
    }

    /// Looks at the decoder's weights anew before the next step. What was recorded goes on where they, or the copies of them,
    /// lie where they lay.
    pub fn weights_changed(&mut self) {
        self.weights_are_current = false;
    }

    /// Feeds the rows of a step to the cache and samples.
    ///
    /// # Errors
    /// When the parts of the step contradict each other, memory cannot be had, or CUDA fails.
    pub fn step(
        &mut self,
        decoder: &Decoder,
        batch: &StepBatch,
        sampling: &SamplingBatch,
    ) -> Result<Vec<SampledRow>> {
        let _no_grad = tch::no_grad_guard();
        if !self.weights_are_current {
            if self.model.take_weights(decoder)? {
                self.decoding.clear();
            }
            self.weights_are_current = true;
        }
        if batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let samples = batch.sample_rows.len();
        if sampling.rows.len() != samples || sampling.cu_banned.len() != samples + 1 {
            let what = format!(
                "{samples} rows are to be sampled with {} settings",
                sampling.rows.len()
            );
            return Err(Error::StepBatch(what));
        }
        self.make_room(batch.min_num_blocks())?;
        batch.check(self.cache.num_blocks(), self.model.block_size)?;
        let sampled = match rows_to_record(batch) {
            Some(rows) => self.decode(rows, batch, sampling)?,
            None => self.mixed(batch, sampling)?,
        };
        self.fetch(sampled.as_ref(), samples)
    }

    /// Makes the cache large enough. A recorded step knows where the cache was.
    fn make_room(&mut self, needed: usize) -> Result<()> {
        let held = self.cache.num_blocks();
        if needed <= held {
            return Ok(());
        }
        self.decoding.clear();
        let wanted = needed.max(2 * held).max(FIRST_BLOCKS);
        self.cache.grow(wanted.min(self.max_blocks).max(needed))
    }

    /// A decoding step, recorded at its first time; gives where the sampled tokens will be.
    fn decode(
        &mut self,
        rows: usize,
        batch: &StepBatch,
        sampling: &SamplingBatch,
    ) -> Result<Option<Tensor>> {
        let longest = batch.block_tables().map(<[i32]>::len).max().unwrap_or(0);
        let room = &mut self.decoding_room;
        if longest > room.max_blocks || sampling.banned.len() > room.banned {
            room.max_blocks = room.max_blocks.max(longest.next_power_of_two());
            room.banned = room.banned.max(sampling.banned.len().next_power_of_two());
            self.decoding.clear();
        }
        let mut decoding = match self.decoding.remove(&rows) {
            Some(decoding) => decoding,
            None => Decoding::new(&self.model, rows, *room)?,
        };
        let model = &self.model;
        let tiles = Tiles::default();
        decoding
            .inputs
            .upload(model.kernels, batch, sampling, &tiles, model.block_size)?;
        let work = || -> Result<Tensor> {
            let sampled = model.step(
                Shape::Decoding,
                &decoding.views,
                &decoding.partial,
                &self.cache,
            )?;
            sampled.ok_or_else(|| Error::StepBatch("nothing to sample".to_owned()))
        };
        let sampled = if model.kernels.is_emulated() || !self.records_steps {
            work()?
        } else {
            if decoding.graph.is_none() {
                let other = self
                    .decoding
                    .values()
                    .find_map(|other| other.graph.as_ref());
                let other = other.map(|(graph, _)| graph);
                decoding.graph = Some(CudaGraph::record(model.kernels.device(), other, work)?);
            }
            let Some((graph, sampled)) = &decoding.graph else {
                return Ok(None);
            };
            graph.replay()?;
            sampled.shallow_clone()
        };
        self.decoding.insert(rows, decoding);
        Ok(Some(sampled))
    }

    /// A step of prompts or parts of them, mixed with decoding rows.
    fn mixed(&mut self, batch: &StepBatch, sampling: &SamplingBatch) -> Result<Option<Tensor>> {
        let model = &self.model;
        let group = model.config.num_attention_heads / model.config.num_key_value_heads.max(1);
        let tiles = if model.has_matrix_attention {
            Tiles::new(batch, Kernels::max_tile_rows(group), MAX_SHORT_ROWS)
        } else {
            Tiles::default()
        };
        let room = Room {
            rows: batch.num_rows(),
            sequences: batch.num_sequences(),
            samples: batch.sample_rows.len(),
            max_blocks: batch.block_tables().map(<[i32]>::len).max().unwrap_or(0),
            banned: sampling.banned.len(),
            copies: batch.block_copies.len(),
            short_tiles: tiles.short.len(),
            long_tiles: tiles.long.len(),
        };
        let mut inputs = StepInputs::new(model.kernels, room, self.mixed.take())?;
        inputs.upload(model.kernels, batch, sampling, &tiles, model.block_size)?;
        let views = inputs.views()?;
        let items = if model.has_matrix_attention {
            tiles.short.len()
        } else {
            room.rows
        };
        let partial = model.partial(room.rows, items)?;
        let sampled = model.step(Shape::Mixed, &views, &partial, &self.cache)?;
        // It is written again after the wait at the end of this step.
        self.mixed = Some(inputs.into_host());
        Ok(sampled)
    }

    /// Waits for the step; takes its sampled tokens to the host.
    fn fetch(&mut self, sampled: Option<&Tensor>, samples: usize) -> Result<Vec<SampledRow>> {
        let kernels = self.model.kernels;
        let Some(sampled) = sampled else {
            kernels.wait()?;
            return Ok(Vec::new());
        };
        let len = samples * SAMPLED_ROW_BYTES;
        if self.results.bytes().len() < len {
            self.results = PinnedBuffer::new(kernels, len.next_power_of_two())?;
        }
        kernels.download(&mut self.results, sampled, len)?;
        Ok(read_sampled_rows(&self.results.bytes()[..len]).collect())
    }
}

/// Whether a product of bf16 can give f32: on CUDA only, where libtorch has it.
fn has_wide_products(kind: Kind, device: Device) -> bool {
    let product = || -> Result<Tensor> {
        let square = Tensor::f_zeros([16, 16], (kind, device))?;
        Ok(square.f_mm_dtype(&square, Kind::Float)?)
    };
    kind == Kind::BFloat16 && device != Device::Cpu && product().is_ok()
}

/// Rows of the recorded step that a batch fits into, if it is a decoding step.
fn rows_to_record(batch: &StepBatch) -> Option<usize> {
    let rows = batch.num_rows();
    let is_decoding = rows == batch.num_sequences()
        && rows == batch.sample_rows.len()
        && rows <= MAX_RECORDED_ROWS
        && batch.block_copies.is_empty()
        && batch.spans().all(|span| span.num_rows == 1);
    let is_in_order = || {
        batch
            .sample_rows
            .iter()
            .zip(0_i32..)
            .all(|(&row, index)| row == index)
    };
    (is_decoding && is_in_order()).then(|| rows.next_power_of_two())
}

impl Decoding {
    fn new(model: &Model, rows: usize, room: DecodingRoom) -> Result<Self> {
        let inputs = StepInputs::new(
            model.kernels,
            Room {
                rows,
                sequences: rows,
                samples: rows,
                max_blocks: room.max_blocks,
                banned: room.banned,
                copies: 0,
                short_tiles: 0,
                long_tiles: 0,
            },
            None,
        )?;
        Ok(Self {
            graph: None,
            views: inputs.views()?,
            partial: model.partial(rows, rows)?,
            inputs,
        })
    }
}

impl Model {
    /// Room for partial results of `rows` rows, of which so many items share a launch: enough parts to give every
    /// multiprocessor some, where items are few.
    fn partial(&self, rows: usize, items: usize) -> Result<PartialSums> {
        let (heads, head_dim) = (self.config.num_attention_heads, self.config.head_dim);
        let blocks = to_size(items.max(1)) * self.config.num_key_value_heads;
        let wanted = (4 * self.multiprocessors + blocks - 1) / blocks;
        let fitting = MAX_PARTIAL / (to_size(rows.max(1)) * heads * head_dim).max(1);
        let splits = wanted.min(fitting).clamp(1, MAX_SPLITS);
        Ok(PartialSums::new(
            &self.kernels,
            to_size(rows),
            heads,
            head_dim,
            splits,
        )?)
    }

    /// Computes a step from what `views` hold, and gives the sampled tokens, if any are to be sampled.
    fn step(
        &self,
        shape: Shape,
        views: &InputViews,
        partial: &PartialSums,
        cache: &KvCache,
    ) -> Result<Option<Tensor>> {
        let kernels = &self.kernels;
        let eps = self.config.rms_norm_eps;
        if views.copies.size()[0] > 0 {
            for layer in 0..self.config.num_hidden_layers {
                let layer = cache.layer(layer);
                for tensor in [layer.keys, layer.values] {
                    kernels.copy_blocks_(&tensor.f_unsqueeze(0)?, &views.copies)?;
                }
            }
        }
        let weights = self.weights()?;
        let residual = Tensor::f_embedding(&weights.embedding, &views.ids, -1, false, false)?;
        let mut added: Option<Tensor> = None;
        for (index, layer) in weights.layers.iter().enumerate() {
            let normed =
                kernels.add_rms_norm_(added.as_ref(), &residual, &layer.input_norm, eps)?;
            let attended = self.attend(shape, layer, index, &normed, views, partial, cache)?;
            let output = layer.output.apply(&attended)?;
            let normed = kernels.add_rms_norm_(Some(&output), &residual, &layer.post_norm, eps)?;
            let gated = kernels.silu_mul(&layer.gate_up.apply(&normed)?)?;
            added = Some(layer.down.apply(&gated)?);
        }
        if views.sample_rows.size()[0] == 0 {
            return Ok(None);
        }
        let hidden = kernels.add_rms_norm_(added.as_ref(), &residual, &weights.norm, eps)?;
        let wanted = match shape {
            Shape::Decoding => hidden,
            Shape::Mixed => hidden.f_index_select(0, &views.sample_rows)?,
        };
        let logits = self.logits(&wanted)?;
        Ok(Some(kernels.sample(
            &logits,
            &views.sampling,
            &views.cu_banned,
            &views.banned,
        )?))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what a step hands from layer to layer"
    )]
    fn attend(
        &self,
        shape: Shape,
        layer: &LayerWeights,
        index: usize,
        normed: &Tensor,
        views: &InputViews,
        partial: &PartialSums,
        cache: &KvCache,
    ) -> Result<Tensor> {
        let kernels = &self.kernels;
        let qkv = layer.qkv.apply(normed)?;
        let norms = layer.query_key_norm.as_ref();
        let places = cache.layer(index);
        let q = kernels.rope_and_cache_(&RopeAndCache {
            qkv: &qkv,
            query_key_norm: norms.map(|[query, key]| [query, key]),
            eps: self.config.rms_norm_eps,
            frequencies: &self.frequencies,
            attention_factor: self.attention_factor,
            positions: &views.positions,
            slots: &views.slots,
            k_cache: places.keys,
            v_cache: places.values,
            heads: self.config.num_attention_heads,
        })?;
        let inputs = PagedAttention {
            q: &q,
            k_cache: places.keys,
            v_cache: places.values,
            block_tables: &views.tables,
            row_sequences: &views.row_sequences,
            context_lens: &views.context_lens,
        };
        let out = q.f_empty_like()?;
        let launch = |rows, path| kernels.paged_attention_(&inputs, rows, path, partial, &out);
        match (self.has_matrix_attention, shape) {
            (false, _) => launch(AttentionRows::All, AttentionPath::ByRow)?,
            (true, Shape::Decoding) => launch(AttentionRows::All, AttentionPath::SharedKeys)?,
            (true, Shape::Mixed) => {
                for (tiles, path) in [
                    (&views.short_tiles, AttentionPath::SharedKeys),
                    (&views.long_tiles, AttentionPath::SharedTiles),
                ] {
                    if tiles.size()[0] > 0 {
                        launch(AttentionRows::Tiles(tiles), path)?;
                    }
                }
            }
        }
        Ok(out.f_flatten(1, 2)?)
    }

    /// Logits in f32: a product of bf16 keeps the precision of its sums.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let head = &self.weights()?.head;
        if self.has_wide_products {
            return Ok(hidden.f_mm_dtype(&head.f_transpose(0, 1)?, Kind::Float)?);
        }
        Ok(hidden
            .f_linear::<&Tensor>(head, None)?
            .f_to_kind(Kind::Float)?)
    }
}
