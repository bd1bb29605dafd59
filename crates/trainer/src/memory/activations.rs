//! Activations of training: what a layer keeps for its backward pass, and what it takes while it computes.

use asyncthink_model::ModelConfig;

use super::settings::MemorySettings;

/// Widths of a layer, in values a token.
struct Widths {
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    inner: u64,
    num_heads: u64,
    norms_heads: bool,
}

impl Widths {
    fn of(config: &ModelConfig) -> Self {
        let size = |value: i64| u64::try_from(value).unwrap_or(0);
        Self {
            hidden: size(config.hidden_size),
            heads: size(config.num_attention_heads * config.head_dim),
            kv_heads: size(config.num_key_value_heads * config.head_dim),
            inner: size(config.intermediate_size),
            num_heads: size(config.num_attention_heads),
            norms_heads: config.has_query_key_norm,
        }
    }
}

/// Bytes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenBytes {
    /// Input of a layer.
    pub(super) input: u64,
    /// What a layer keeps for its backward pass, its input included.
    pub(super) kept: u64,
    /// What a layer takes at most while its backward pass computes, besides what it keeps.
    pub(super) working: u64,
    /// Hidden states and their gradients around the head.
    pub(super) ends: u64,
}

impl TokenBytes {
    pub(super) fn of(config: &ModelConfig, settings: &MemorySettings) -> Self {
        let widths = Widths::of(config);
        let element = settings.element_bytes;
        let (kept, working) = if settings.is_fused() {
            fused(&widths, element)
        } else {
            graph(&widths, element, settings.is_cpu)
        };
        Self {
            input: widths.hidden * element,
            kept,
            working,
            // Hidden states after the last layer, after the norm, at the trained positions, and the gradient of each.
            ends: 5 * widths.hidden * element,
        }
    }
}

/// A graph of libtorch's operations.
fn graph(widths: &Widths, element: u64, is_cpu: bool) -> (u64, u64) {
    let &Widths {
        hidden,
        heads,
        kv_heads,
        inner,
        num_heads,
        norms_heads,
    } = widths;
    // Besides its input a norm keeps what it gives, which a product needs; on a CPU also what is normed before the gain, and
    // of bf16 both this and the input in f32.
    let inner_of_norm = |width: u64| match (is_cpu, element) {
        (false, _) => 0,
        (true, 4) => width * 4,
        (true, _) => 2 * width * 4,
    };
    let norm = |width: u64| width * element + inner_of_norm(width);
    let of_heads = if norms_heads {
        // After the norm a rotation keeps nothing.
        (heads + kv_heads) * element + inner_of_norm(heads) + inner_of_norm(kv_heads)
    } else {
        0
    };
    // Rotated queries and keys, values, the output of attention and that of all segments together.
    let attention = (3 * heads + 2 * kv_heads) * element + 4 * num_heads;
    // The input and the state between the blocks; gate, its activation, up, their product.
    let kept = 2 * hidden * element + 2 * norm(hidden) + of_heads + attention + 4 * inner * element;
    // Gradients of the product, of gate and up, and of hidden states; or those of attention.
    let feed_forward = (3 * inner + 3 * hidden) * element;
    let attended = (4 * heads + 4 * kv_heads + 2 * hidden) * element;
    (kept, feed_forward.max(attended))
}

/// The fused kernels of `asyncthink_torch`: norms, rotation and gate are computed again.
fn fused(widths: &Widths, element: u64) -> (u64, u64) {
    let &Widths {
        hidden,
        heads,
        kv_heads,
        inner,
        num_heads,
        norms_heads,
    } = widths;
    let projected = heads + 2 * kv_heads;
    let rotated = if norms_heads { heads + kv_heads } else { 0 };
    let values = 2 * hidden + projected + rotated + heads + 2 * inner;
    // Sums of softmaxes and of squares, in f32.
    let kept = values * element + 4 * (num_heads + 2);
    // Gradients of the product and of the gate; those of attention, in f32.
    let feed_forward = (2 * inner + 2 * hidden) * element;
    let attended = (2 * hidden + heads + projected) * element + 4 * projected;
    (kept, feed_forward.max(attended))
}
