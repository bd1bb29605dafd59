//! The only crate with unsafe code and C++: devices, fused kernels, collectives, run-time CUDA loading.
//!
//! Everything that the framework needs from libtorch and that `tch` does not offer is reached through a small C++
//! library compiled by this crate's build script. A C++ exception never crosses into Rust: it becomes an [`Error`]
//! that names the operation.
//!
//! One program serves the CPU and CUDA. It links only `libtorch_cpu.so`; [`open_device`] opens `libtorch_cuda.so` at
//! run time when a GPU is asked for, which must happen before any other use of libtorch, because libtorch decides
//! once whether CUDA is there.

mod autograd;
mod ceiling;
mod collectives;
mod cpu_decoder;
mod cuda;
mod cuda_graph;
mod cuda_kernels;
mod device;
mod error;
mod ffi;
mod library;
mod memory;
mod nccl;
mod number_formats;
mod optim;
mod sampling;
mod threads;
mod training;

pub use autograd::{backward_with_grad, backward_with_grads, gradient_of, set_grad};
pub use ceiling::{matmul_flops_per_sec, matmul_flops_per_sec_of, read_bytes_per_sec};
pub use collectives::{
    Backend, CollectiveFailure, Difference, FlightRecord, GroupOptions, Operation, ProcessGroup,
    Reduction, Store, StoreOptions, Suspect, SuspectReason, Traffic, Work,
};
pub use cpu_decoder::{
    CPU_BLOCK_TOKENS, CpuDecoder, CpuDecoderConfig, CpuKernels, CpuKvCache, CpuParameter, CpuStep,
};
pub use cuda_graph::CudaGraph;
pub use cuda_kernels::{
    AttentionPath, AttentionRows, KERNEL_HEAD_DIMS, KernelCheck, Kernels, MAX_KERNEL_VOCAB,
    PagedAttention, PartialSums, PinnedBuffer, RopeAndCache, SAMPLED_ROW_BYTES, SAMPLING_ROW_BYTES,
    read_sampled_rows, self_test, write_sampling_row,
};
pub use device::{DeviceSpec, open_device, why_not_cuda};
pub use error::{Error, Result};
pub use memory::{
    MemoryUse, allocated_bytes, empty_cache, free_bytes, keep_freed_memory, memory_use, peak_bytes,
    reset_peak_memory,
};
pub use number_formats::{cpu_has_bf16_products, set_tf32};
pub use optim::{AdamwSettings, AdamwState, clip_grad_norm_, fused_adamw_, global_norm, scale_};
pub use sampling::{ReferenceSampler, SampledRow, SamplingBatch, SamplingRow, uniform};
pub use threads::{
    manual_seed, num_threads, set_num_threads, set_operation_threads, thread_budget,
};
pub use training::{
    Head, HeadLogits, LayerParameter, LayerTensors, Normed, PackedSegments, SavedLayer,
    embedding_backward, segment_attention,
};
