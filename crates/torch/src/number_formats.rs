//! Number formats of products: what the processor has instructions for, and TF32 on GPUs.
#![expect(unsafe_code, reason = "calls the C++ side")]

use crate::error::Result;
use crate::ffi;

/// Whether the CPU multiplies matrices in bf16 faster than in f32: it has AVX-512 BF16, with or without AMX.
pub fn cpu_has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether GPUs may round the operands of f32 products to TF32, which has 10 bits of mantissa. Not so by default.
///
/// # Errors
/// A failure of libtorch.
pub fn set_tf32(is_allowed: bool) -> Result<()> {
    // SAFETY: takes a flag and sets one of libtorch's, which products read when they start.
    unsafe { ffi::check("set_tf32", ffi::asyncthink_set_tf32(is_allowed)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_on_the_cpu_do_not_depend_on_tf32() {
        let options = (tch::Kind::Float, tch::Device::Cpu);
        let matrix = tch::Tensor::arange(64 * 64, options).reshape([64, 64]) * 0.37;
        let expected = matrix.matmul(&matrix);
        set_tf32(true).unwrap();
        let allowed = matrix.matmul(&matrix);
        set_tf32(false).unwrap();
        assert!(allowed.equal(&expected));
    }
}
