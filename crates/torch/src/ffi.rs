//! The C functions of this crate's C++ side and the rules for calling them.
#![expect(unsafe_code, reason = "declares and calls foreign functions")]

use std::borrow::Borrow;
use std::ffi::{CStr, c_char, c_int, c_void};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, Result};
use crate::sampling::{SampledRow, SamplingRow};

/// Rows of one step for the CPU decoder.
#[repr(C)]
pub(crate) struct RawStep {
    pub(crate) ids: *const i64,
    pub(crate) cu_rows: *const i32,
    pub(crate) first_positions: *const i32,
    pub(crate) cu_blocks: *const i32,
    pub(crate) blocks: *const i32,
    pub(crate) block_copies: *const i32,
    pub(crate) sample_rows: *const i32,
    pub(crate) sampling: *const SamplingRow,
    pub(crate) cu_banned: *const i32,
    pub(crate) banned: *const i64,
    pub(crate) cos: *const f32,
    pub(crate) sin: *const f32,
    pub(crate) num_positions: i64,
    pub(crate) num_sequences: i64,
    pub(crate) num_block_copies: i64,
    pub(crate) num_samples: i64,
    pub(crate) num_threads: i32,
    pub(crate) logits: *mut f32,
}

/// Parameters of a decoder layer, in the order of the C++ side.
pub(crate) const NUM_LAYER_PARAMETERS: usize = 18;

/// A decoder layer with its gradients, as the C++ side reads it.
#[repr(C)]
pub(crate) struct RawLayer {
    pub(crate) parameters: [*const C_tensor; NUM_LAYER_PARAMETERS],
    pub(crate) gradients: [*const C_tensor; NUM_LAYER_PARAMETERS],
    pub(crate) head_dim: i64,
    pub(crate) eps: f64,
    pub(crate) cos: *const C_tensor,
    pub(crate) sin: *const C_tensor,
    pub(crate) lens: *const i64,
    pub(crate) prefixes: *const i64,
    pub(crate) num_segments: i64,
}

/// Activations of a layer that the C++ side keeps.
#[repr(C)]
pub(crate) struct RawSavedLayer {
    _private: [u8; 0],
}

/// The C++ decoder.
#[repr(C)]
pub(crate) struct RawDecoder {
    _private: [u8; 0],
}

/// The C++ cache.
#[repr(C)]
pub(crate) struct RawCache {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn asyncthink_free(message: *mut c_char);
    /// glibc's.
    pub(crate) fn malloc_trim(pad: usize) -> c_int;
    pub(crate) fn asyncthink_keep_freed_memory();
    pub(crate) fn asyncthink_set_tf32(is_allowed: bool) -> *mut c_char;
    pub(crate) fn asyncthink_fused_adamw(
        params: *const *const C_tensor,
        grads: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        count: usize,
        step: f64,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_global_norm(
        tensors: *const *const C_tensor,
        count: usize,
        norm: *mut f64,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_set_grad(
        tensor: *const C_tensor,
        grad: *const C_tensor,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_scale(
        tensors: *const *const C_tensor,
        count: usize,
        factor: f64,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_backward(
        tensors: *const *const C_tensor,
        grads: *const *const C_tensor,
        count: usize,
        retain_graph: bool,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_set_row_kernels(kernels: *const c_void, is_emulated: bool);
    #[cfg(test)]
    pub(crate) fn asyncthink_limit_training_kernels(most: c_int);
    pub(crate) fn asyncthink_segment_attention(
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        lens: *const i64,
        prefixes: *const i64,
        num_segments: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_layer_forward(
        layer: *const RawLayer,
        input: *const C_tensor,
        output: *mut *mut C_tensor,
        saved: *mut *mut RawSavedLayer,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_layer_backward(
        layer: *const RawLayer,
        saved: *mut RawSavedLayer,
        doutput: *const C_tensor,
        dinput: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_layer_free(saved: *mut RawSavedLayer);
    pub(crate) fn asyncthink_head_forward(
        hidden: *const C_tensor,
        weight: *const C_tensor,
        targets: *const C_tensor,
        temperature: f64,
        logits: *mut *mut C_tensor,
        logp: *mut *mut C_tensor,
        log_sum: *mut *mut C_tensor,
        entropy: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_head_backward(
        hidden: *const C_tensor,
        weight: *const C_tensor,
        logits: *const C_tensor,
        targets: *const C_tensor,
        log_sum: *const C_tensor,
        entropy: *const C_tensor,
        dlogp: *const C_tensor,
        dentropy: *const C_tensor,
        temperature: f64,
        dweight: *const C_tensor,
        dhidden: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_norm_forward(
        x: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
        y: *mut *mut C_tensor,
        rstd: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_norm_backward(
        x: *const C_tensor,
        weight: *const C_tensor,
        rstd: *const C_tensor,
        dy: *const C_tensor,
        dweight: *const C_tensor,
        dx: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_embedding_backward(
        ids: *const C_tensor,
        d: *const C_tensor,
        dweight: *const C_tensor,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_cpu_decoder_new(
        config: *const c_void,
        decoder: *mut *mut RawDecoder,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_cpu_decoder_free(decoder: *mut RawDecoder);
    pub(crate) fn asyncthink_cpu_decoder_kernels(decoder: *const RawDecoder) -> *const c_char;
    pub(crate) fn asyncthink_cpu_decoder_bytes(decoder: *const RawDecoder) -> u64;
    pub(crate) fn asyncthink_cpu_decoder_set(
        decoder: *mut RawDecoder,
        part: i32,
        layer: i64,
        tensors: *const *const C_tensor,
        num_tensors: i64,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_cpu_cache_new(
        config: *const c_void,
        num_blocks: i64,
        block_size: i64,
        cache: *mut *mut RawCache,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_cpu_cache_free(cache: *mut RawCache);
    pub(crate) fn asyncthink_cpu_decoder_step(
        decoder: *mut RawDecoder,
        cache: *mut RawCache,
        step: *const RawStep,
        out: *mut SampledRow,
    ) -> *mut c_char;
    pub(crate) fn asyncthink_memory_file(
        name: *const c_char,
        bytes: *const u8,
        size: usize,
        descriptor: *mut c_int,
    ) -> *mut c_char;
}

/// Turns what a foreign function returned into a result, freeing the message.
///
/// # Safety
/// `message` is null or was returned by a function of this crate's C++ side and is not used again.
pub(crate) unsafe fn check(op: &'static str, message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string that lives until it is freed below.
    let text = unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: the message was allocated by `strdup` and is freed once.
    unsafe { asyncthink_free(message) };
    Err(Error::torch(op, &text))
}

/// The C++ tensors behind a slice; valid as long as the slice is borrowed.
pub(crate) fn pointers<T: Borrow<Tensor>>(tensors: &[T]) -> Vec<*const C_tensor> {
    tensors
        .iter()
        .map(|tensor| tensor.borrow().as_ptr())
        .collect()
}
