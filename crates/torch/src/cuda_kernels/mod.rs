//! Fused CUDA kernels of a decoding step: norms, rotary positions with the write into a paged cache, attention over it,
//! sampling.
//!
//! The kernels are compiled by nvcc into a library that the program carries, and opened with [`Kernels::open`] after
//! [`crate::open_device`]. In builds for tests the same source, compiled as plain C++, runs on the CPU with
//! [`Kernels::emulated`]: slowly, and only to be compared.
//!
//! Results are on the stream that libtorch uses, like those of its own operations; nothing here waits for the device
//! but [`Kernels::download`]. Numbers that are on the device (block tables, lengths, slots) cannot be checked here; the
//! kernels bend those out of range into it, so that they give a wrong result and reach no foreign memory.
#![expect(unsafe_code, reason = "calls kernels with pointers to tensors")]

mod attention;
mod functions;
mod layer;
mod pinned;
mod reference;
mod sampling;
mod self_test;
mod training;

#[cfg(test)]
mod tests;

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

pub use attention::{AttentionPath, AttentionRows, PagedAttention, PartialSums};
pub use layer::RopeAndCache;
pub use pinned::PinnedBuffer;
pub use sampling::{SAMPLED_ROW_BYTES, SAMPLING_ROW_BYTES, read_sampled_rows, write_sampling_row};
pub use self_test::{KernelCheck, self_test};

#[cfg(test)]
use crate::error::OpContext;
use crate::error::{Error, Result};
use functions::Functions;

/// Head dimensions that the kernels are compiled for.
pub const KERNEL_HEAD_DIMS: [i64; 4] = [16, 32, 64, 128];

/// Largest vocabulary that the sampler takes.
pub const MAX_KERNEL_VOCAB: i64 = 1 << 20;

/// The kernels on one device.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    functions: &'static Functions,
    device: Device,
}

impl Kernels {
    /// The kernels on a GPU.
    ///
    /// # Errors
    /// When the device is no GPU, the program was built without nvcc, or the library cannot be opened.
    pub fn open(device: Device) -> Result<Self> {
        static CUDA: OnceLock<Functions> = OnceLock::new();
        if !matches!(device, Device::Cuda(_)) {
            return Err(Error::Argument {
                op: "open_kernels",
                argument: "device",
                expected: "a GPU".to_owned(),
                got: format!("{device:?}"),
            });
        }
        if CUDA.get().is_none() {
            // Another thread may have been faster; either will do.
            let _ = CUDA.set(Functions::open_cuda()?);
        }
        Self::of(&CUDA, device)
    }

    /// The kernels on the CPU, for tests.
    ///
    /// # Errors
    /// When this is a release build, which has no emulation.
    pub fn emulated() -> Result<Self> {
        static EMULATED: OnceLock<Functions> = OnceLock::new();
        if EMULATED.get().is_none() {
            let _ = EMULATED.set(Functions::open_emulated()?);
        }
        Self::of(&EMULATED, Device::Cpu)
    }

    fn of(functions: &'static OnceLock<Functions>, device: Device) -> Result<Self> {
        let functions = functions.get().ok_or_else(|| Error::Torch {
            op: "open_kernels",
            message: "the library was not kept".to_owned(),
        })?;
        Ok(Self { functions, device })
    }

    /// Whether there are kernels for heads of this size and this kind of numbers.
    pub fn supports(kind: Kind, head_dim: i64) -> bool {
        kind_code(kind).is_some() && KERNEL_HEAD_DIMS.contains(&head_dim)
    }

    /// Where the kernels run.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether the kernels are those for tests.
    pub fn is_emulated(&self) -> bool {
        self.device == Device::Cpu
    }

    /// Number of multiprocessors of the device.
    ///
    /// # Errors
    /// A failure of CUDA.
    pub fn multiprocessors(&self) -> Result<usize> {
        let mut count = 0_i32;
        // SAFETY: `count` outlives the call.
        let message = unsafe { (self.functions.multiprocessors)(self.index(), &raw mut count) };
        self.check("multiprocessors", message)?;
        Ok(usize::try_from(count).unwrap_or(1).max(1))
    }

    /// Waits for all that was given to the device.
    ///
    /// # Errors
    /// A failure of CUDA, which may be one of an earlier kernel.
    pub fn wait(&self) -> Result<()> {
        let stream = self.stream()?;
        // SAFETY: the stream was just given by the library.
        let message = unsafe { (self.functions.wait)(stream) };
        self.check("wait", message)
    }

    /// Changes the order in which the next launch runs the threads of a block, emulated.
    #[cfg(test)]
    fn reverse_threads(&self) -> Result<()> {
        // Every launch changes it.
        let kind = (Kind::Float, Device::Cpu);
        self.silu_mul(&Tensor::f_zeros([1, 8], kind).op("reverse_threads")?)
            .map(|_| ())
    }

    fn index(&self) -> c_int {
        match self.device {
            Device::Cuda(index) => c_int::try_from(index).unwrap_or(c_int::MAX),
            _ => 0,
        }
    }

    /// The stream that libtorch uses on the device now.
    fn stream(&self) -> Result<*mut c_void> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: `stream` outlives the call.
        let message = unsafe { (self.functions.stream)(self.index(), &raw mut stream) };
        self.check("current_stream", message)?;
        Ok(stream)
    }

    fn check(&self, op: &'static str, message: *mut c_char) -> Result<()> {
        self.functions.check(op, message)
    }

    /// Pointer to a tensor of this shape and kind on the device of the kernels.
    fn place(
        &self,
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor,
        kind: Kind,
        shape: &[i64],
    ) -> Result<*mut c_void> {
        let fits = tensor.device() == self.device
            && tensor.kind() == kind
            && tensor.size() == shape
            && tensor.is_contiguous();
        // The kernels read 16 bytes at a time; a view of a tensor may begin anywhere.
        let is_aligned = fits && tensor.data_ptr().addr().is_multiple_of(16);
        if is_aligned {
            return Ok(tensor.data_ptr());
        }
        let layout = match (tensor.is_contiguous(), fits) {
            (false, _) => ", not contiguous",
            (true, true) => ", not aligned to 16 bytes",
            (true, false) => "",
        };
        Err(Error::Argument {
            op,
            argument,
            expected: format!("{kind:?} {shape:?} on {:?}", self.device),
            got: format!(
                "{:?} {:?} on {:?}{layout}",
                tensor.kind(),
                tensor.size(),
                tensor.device()
            ),
        })
    }

    /// The size of a tensor of so many dimensions.
    fn sizes<const N: usize>(
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor,
    ) -> Result<[i64; N]> {
        <[i64; N]>::try_from(tensor.size()).map_err(|size| Error::Argument {
            op,
            argument,
            expected: format!("of {N} dimensions"),
            got: format!("{size:?}"),
        })
    }
}

/// How the kernels are told a kind of numbers, if they take it.
fn kind_code(kind: Kind) -> Option<i32> {
    match kind {
        Kind::Float => Some(0),
        Kind::BFloat16 => Some(1),
        _ => None,
    }
}

fn expect_kind(op: &'static str, argument: &'static str, kind: Kind) -> Result<i32> {
    kind_code(kind).ok_or_else(|| Error::Argument {
        op,
        argument,
        expected: "Float or BFloat16".to_owned(),
        got: format!("{kind:?}"),
    })
}
