//! The prediction itself.

use asyncthink_model::ModelConfig;
use asyncthink_recipe::Shard;
use serde::Serialize;

use super::activations::TokenBytes;
use super::settings::{MemorySettings, Trained};

/// Logits of a chunk of tokens at most, as `asyncthink_gradient::head` cuts them.
const MAX_CHUNK_LOGITS: u64 = 1 << 26;

/// Tokens of a chunk at most.
const MAX_CHUNK_TOKENS: u64 = 4096;

/// Bytes of f32.
const F32: u64 = 4;

/// One part of so many is lost to holes between tensors.
const OVERHEAD_SHARE: u64 = 25;

/// Buffers of libraries and stacks of threads on a CPU.
const CPU_OVERHEAD_BYTES: u64 = 24 << 20;

/// Workspaces of cuBLAS and recorded steps on a GPU; an estimate.
const GPU_OVERHEAD_BYTES: u64 = 768 << 20;

/// When a part is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// All the time.
    Always,
    /// While gradients are computed.
    Training,
    /// While episodes are sampled.
    Sampling,
    /// While a checkpoint is written.
    Saving,
}

/// A part of the memory of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPart {
    /// Name of the part.
    pub name: &'static str,
    /// Bytes on the device.
    pub device_bytes: u64,
    /// Bytes in host memory, where this is another one.
    pub host_bytes: u64,
    /// When it is there.
    pub when: When,
}

/// Memory of a rank, part by part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPrediction {
    /// The parts, in the order in which they are named.
    pub parts: Vec<MemoryPart>,
}

impl MemoryPrediction {
    /// Bytes on the device in a phase.
    pub fn during_bytes(&self, phase: When) -> u64 {
        self.during(phase, |part| part.device_bytes)
    }

    /// The parts of the fullest phase on one line, the largest first.
    pub fn summary(&self) -> String {
        let phase = if self.during_bytes(When::Training) >= self.during_bytes(When::Sampling) {
            When::Training
        } else {
            When::Sampling
        };
        let there = |part: &&MemoryPart| {
            (part.when == When::Always || part.when == phase) && part.device_bytes > 0
        };
        let mut parts: Vec<&MemoryPart> = self.parts.iter().filter(there).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.device_bytes));
        let parts = parts.iter();
        let parts: Vec<String> = parts
            .map(|part| format!("{} {}", part.name, bytes_text(part.device_bytes)))
            .collect();
        parts.join(", ")
    }

    fn during(&self, phase: When, bytes: impl Fn(&MemoryPart) -> u64) -> u64 {
        let there = |part: &&MemoryPart| part.when == When::Always || part.when == phase;
        self.parts.iter().filter(there).map(bytes).sum()
    }

    /// Most bytes on the device at a time.
    pub fn device_bytes(&self) -> u64 {
        self.step_bytes().max(self.during_bytes(When::Saving))
    }

    /// Most bytes on the device in a step, checkpoints left out.
    pub fn step_bytes(&self) -> u64 {
        let training = self.during_bytes(When::Training);
        training.max(self.during_bytes(When::Sampling))
    }

    /// Most bytes in host memory at a time, where this is another one than the device's.
    pub fn host_bytes(&self) -> u64 {
        let phases = [When::Training, When::Sampling, When::Saving];
        let during = |phase| self.during(phase, |part| part.host_bytes);
        phases.into_iter().map(during).max().unwrap_or(0)
    }

    /// Adds what allocators, libraries and threads take, as measured beside the rest.
    fn with_overhead(mut self, settings: &MemorySettings) -> Self {
        let (fixed, shared) = if settings.is_cpu {
            (CPU_OVERHEAD_BYTES, self.step_bytes())
        } else {
            // What stays is allocated once, in one piece.
            let stays = self.during_bytes(When::Saving);
            let passing = self.step_bytes().saturating_sub(stays);
            (GPU_OVERHEAD_BYTES, passing)
        };
        let share = shared / OVERHEAD_SHARE;
        self.parts.push(MemoryPart {
            name: "allocator and libraries",
            device_bytes: fixed + share,
            host_bytes: 0,
            when: When::Always,
        });
        self
    }

    /// Bytes in host memory that are there all the time.
    pub fn resident_host_bytes(&self) -> u64 {
        let stay = |part: &&MemoryPart| part.when == When::Always;
        let parts = self.parts.iter().filter(stay);
        parts.map(|part| part.host_bytes).sum()
    }

    /// Bytes of a part on the device; 0 where there is none.
    pub fn of(&self, name: &str) -> u64 {
        let found = self.parts.iter().find(|part| part.name == name);
        found.map_or(0, |part| part.device_bytes)
    }
}

/// Bytes as people read them.
pub fn bytes_text(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mib = bytes as f64 / MIB;
    if mib >= 1024.0 {
        format!("{:.1} GiB", mib / 1024.0)
    } else if mib >= 10.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{mib:.2} MiB")
    }
}

/// Memory that a rank takes in a step of training.
#[expect(clippy::too_many_lines, reason = "a list of parts")]
pub fn predict(config: &ModelConfig, settings: &MemorySettings) -> MemoryPrediction {
    let sizes = Sizes::of(config, settings);
    let (on_device, on_host) = if settings.offloads_optimizer {
        (0, 1)
    } else {
        (1, 0)
    };
    let is_full = settings.shard == Shard::Full && settings.trained == Trained::All;
    let mut parts = Vec::new();
    let mut add = |name, device_bytes, host_bytes, when| {
        parts.push(MemoryPart {
            name,
            device_bytes,
            host_bytes,
            when,
        });
    };
    let element = settings.element_bytes;
    add("weights", sizes.held * element, 0, When::Always);
    if let Trained::Adapters(count) = settings.trained {
        add("adapters", count * F32, 0, When::Always);
    }
    let has_master =
        settings.offloads_optimizer || (element != F32 && matches!(settings.trained, Trained::All));
    let master = if has_master { sizes.owned * F32 } else { 0 };
    add(
        "master weights",
        master * on_device,
        master * on_host,
        When::Always,
    );
    // Every rank sums all gradients and owns a part of the sums, unless the gradients are shared out themselves.
    let gradients = match (is_full, settings.world_size) {
        (false, 2..) => sizes.trained + sizes.owned,
        _ => sizes.owned,
    };
    add("gradients", gradients * F32, 0, When::Always);
    let moments = 2 * sizes.owned * F32;
    add(
        "moments",
        moments * on_device,
        moments * on_host,
        When::Always,
    );
    let tokens = TokenBytes::of(config, settings);
    add(
        "activations",
        activations(config, settings, tokens),
        0,
        When::Training,
    );
    add(
        "logits of a chunk",
        logits(config, settings),
        0,
        When::Training,
    );
    if settings.has_reference {
        add("reference model", sizes.held * element, 0, When::Always);
    }
    let exchanged = rank_buffers(&sizes, settings);
    if exchanged > 0 {
        add("buffers of ranks", exchanged, 0, When::Training);
    }
    if settings.num_workers > 1 {
        let others = (settings.num_workers - 1) * sizes.trained * F32;
        add("gradients of threads", others, 0, When::Training);
    }
    if let Some(sampling) = settings.sampling {
        add(
            "weights for sampling",
            sampling_weights(&sizes, settings),
            0,
            When::Always,
        );
        // On a GPU cache and activations take turns.
        let when = if settings.is_cpu {
            When::Always
        } else {
            When::Sampling
        };
        add("KV cache", sampling.cache_bytes, 0, when);
        let widest = sizes.widest_layer_values * sampling.element_bytes.max(2) * 2;
        let step = sampling.batch_tokens * widest + 96 * sizes.vocab * F32;
        add("sampling step", step, 0, When::Sampling);
    }
    // Moments are copied, and the weights as f32.
    let saved = moments
        + if settings.is_cpu {
            0
        } else {
            sizes.trained * F32
        };
    let (on_device, on_host) = if settings.is_cpu {
        (saved, 0)
    } else {
        (0, saved)
    };
    add("copies for a checkpoint", on_device, on_host, When::Saving);
    if settings.offloads_optimizer {
        // Gradients and weights on their way.
        add(
            "staging of the optimizer",
            0,
            (1 << 24) * (F32 + element),
            When::Always,
        );
    }
    let prediction = MemoryPrediction { parts };
    prediction.with_overhead(settings)
}

/// Counts of values.
struct Sizes {
    all: u64,
    /// Weights that a rank holds while it computes nothing.
    held: u64,
    trained: u64,
    /// Trained values that a rank owns.
    owned: u64,
    /// Those of embedding, final norm and head.
    root: u64,
    layer: u64,
    vocab: u64,
    hidden: u64,
    is_tied: bool,
    widest_layer_values: u64,
}

impl Sizes {
    fn of(config: &ModelConfig, settings: &MemorySettings) -> Self {
        let size = |value: i64| u64::try_from(value).unwrap_or(0);
        let all = size(config.num_parameters());
        let (vocab, hidden) = (size(config.vocab_size), size(config.hidden_size));
        let root = vocab * hidden * if config.tie_word_embeddings { 1 } else { 2 } + hidden;
        let num_layers = config.num_hidden_layers.max(1) as u64;
        let trained = match settings.trained {
            Trained::All => all,
            Trained::Adapters(count) => count,
        };
        let is_full = settings.shard == Shard::Full;
        Self {
            all,
            held: if is_full {
                all.div_ceil(settings.world_size)
            } else {
                all
            },
            trained,
            owned: trained.div_ceil(settings.world_size),
            root,
            layer: all.saturating_sub(root) / num_layers,
            vocab,
            hidden,
            is_tied: config.tie_word_embeddings,
            widest_layer_values: 2 * size(config.intermediate_size) + 4 * hidden,
        }
    }
}

fn activations(config: &ModelConfig, settings: &MemorySettings, tokens: TokenBytes) -> u64 {
    let num_layers = config.num_hidden_layers as u64;
    let in_flight = settings.tokens_in_flight();
    // Layers that are computed again are so one micro-batch after another, unless threads have one each.
    let at_once = match settings.shard {
        Shard::Full => settings.tokens_of_micro_batch(),
        Shard::Optimizer => in_flight,
    };
    let kept = if settings.recomputes() {
        in_flight * tokens.input * (num_layers + 1) + at_once * tokens.kept
    } else {
        in_flight * tokens.kept * num_layers
    };
    kept + in_flight * tokens.ends + at_once * tokens.working
}

/// Logits of a chunk in f32, log-probabilities and their gradients; the gradient of the head before it is added.
fn logits(config: &ModelConfig, settings: &MemorySettings) -> u64 {
    let vocab = u64::try_from(config.vocab_size).unwrap_or(1).max(1);
    let hidden = u64::try_from(config.hidden_size).unwrap_or(0);
    let chunk = (MAX_CHUNK_LOGITS / vocab).clamp(1, MAX_CHUNK_TOKENS);
    let tokens = chunk.min(settings.tokens_of_micro_batch());
    let workers = settings.num_workers;
    let element = settings.element_bytes;
    let (per_logit, head) = if settings.is_fused() {
        match element {
            4 => (4, 0),
            _ => (4 + 2 + 2, vocab * hidden * element),
        }
    } else {
        let rounded = if element == F32 { 0 } else { 2 * element };
        let head = match settings.trained {
            Trained::All => vocab * hidden * element,
            Trained::Adapters(_) => 0,
        };
        (3 * F32 + rounded, head)
    };
    workers * (tokens * vocab * per_logit + head)
}

fn rank_buffers(sizes: &Sizes, settings: &MemorySettings) -> u64 {
    let element = settings.element_bytes;
    match settings.shard {
        // Two layers and what is not in layers, as values and gradients, and the sums on their way.
        Shard::Full => {
            let gradients = match settings.trained {
                Trained::All => 2 * sizes.layer + sizes.root + sizes.layer + sizes.root,
                Trained::Adapters(_) => 0,
            };
            (2 * sizes.layer + sizes.root) * element + gradients * F32
        }
        Shard::Optimizer if settings.world_size > 1 => sizes.owned * element,
        Shard::Optimizer => 0,
    }
}

/// Copies of the weights that sampling makes beside those of training.
fn sampling_weights(sizes: &Sizes, settings: &MemorySettings) -> u64 {
    let Some(sampling) = settings.sampling else {
        return 0;
    };
    let has_adapters = settings.trained != Trained::All;
    // Parts are gathered into one; on a CPU adapters are added to a copy.
    let whole = if (has_adapters && settings.is_cpu) || settings.shard == Shard::Full {
        sizes.all * settings.element_bytes
    } else {
        0
    };
    if settings.is_cpu {
        // Packed for the kernels, a tied head apart from the embedding.
        let head = if sizes.is_tied {
            sizes.vocab * sizes.hidden
        } else {
            0
        };
        return whole + (sizes.all + head) * sampling.element_bytes;
    }
    let shares = settings.element_bytes == sampling.element_bytes;
    whole
        + if shares {
            0
        } else {
            sizes.all * sampling.element_bytes
        }
}
