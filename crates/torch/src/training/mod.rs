//! Forward and backward passes of training without a graph: fused kernels between libtorch's matrix products, gradients added where
//! the optimizer keeps them.
//!
//! A layer runs on the CPU in f32 or bf16, and on a GPU in bf16 with libtorch's flash attention ([`LayerTensors`]); norm, embedding
//! and output head run on any device ([`Head`], [`Normed`]).

mod ends;
mod layer;
#[cfg(test)]
mod tests;

use tch::Tensor;
use torch_sys::C_tensor;

pub use ends::{Head, HeadLogits, Normed, embedding_backward};
pub use layer::{LayerParameter, LayerTensors, PackedSegments, SavedLayer, segment_attention};

/// The pointer of a tensor, null for none.
fn pointer(tensor: Option<&Tensor>) -> *const C_tensor {
    tensor.map_or(std::ptr::null(), Tensor::as_ptr)
}
