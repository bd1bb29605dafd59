//! The part of this crate that needs CUDA: a small library carried as bytes and opened after `libtorch_cuda.so`.
#![expect(
    unsafe_code,
    reason = "opens a dynamic library and calls its functions"
)]

use std::ffi::{c_char, c_int};
use std::sync::OnceLock;

use libloading::os::unix::{Library, Symbol};

use crate::error::{Error, Result};
use crate::library::{FreeFn, linker_message, open_carried, take_message};
use crate::memory::MemoryUse;

/// The library, or nothing where the build found no CUDA headers. Carried inside, so that the program is one file.
static LIBRARY_BYTES: &[u8] = include_bytes!(env!("ASYNCTHINK_CUDA_LIBRARY"));

type MemoryFn = unsafe extern "C" fn(c_int, *mut u64, *mut u64, *mut u64) -> *mut c_char;
type FreeMemoryFn = unsafe extern "C" fn(c_int, *mut u64) -> *mut c_char;
type DeviceFn = unsafe extern "C" fn(c_int) -> *mut c_char;
type PlainFn = unsafe extern "C" fn() -> *mut c_char;

/// The functions of the CUDA library.
pub(crate) struct Statistics {
    memory: Symbol<MemoryFn>,
    free_memory: Symbol<FreeMemoryFn>,
    reset_peak: Symbol<DeviceFn>,
    empty_cache: Symbol<PlainFn>,
    free: Symbol<FreeFn>,
    _library: Library,
}

static STATISTICS: OnceLock<Statistics> = OnceLock::new();

/// The CUDA library if [`open_statistics`] has opened it.
pub(crate) fn statistics() -> Option<&'static Statistics> {
    STATISTICS.get()
}

/// Opens the CUDA library. `libc10_cuda.so` must be loaded before.
pub(crate) fn open_statistics() -> Result<()> {
    if STATISTICS.get().is_none() {
        let opened = Statistics::open()?;
        // Another thread may have been faster; either will do.
        let _ = STATISTICS.set(opened);
    }
    Ok(())
}

impl Statistics {
    fn open() -> Result<Self> {
        const OP: &str = "open_cuda_statistics";
        let failed = |message: String| Error::Torch { op: OP, message };
        if LIBRARY_BYTES.is_empty() {
            return Err(failed("built without the CUDA headers".to_owned()));
        }
        let library = open_carried(OP, c"asyncthink_cuda", LIBRARY_BYTES)?;
        let linker = |error: libloading::Error| failed(linker_message(&error));
        // SAFETY: the signatures are those of `cpp/cuda_memory.cpp`.
        unsafe {
            Ok(Statistics {
                memory: library.get(b"asyncthink_cuda_memory\0").map_err(linker)?,
                free_memory: library
                    .get(b"asyncthink_cuda_free_memory\0")
                    .map_err(linker)?,
                reset_peak: library
                    .get(b"asyncthink_cuda_reset_peak\0")
                    .map_err(linker)?,
                empty_cache: library
                    .get(b"asyncthink_cuda_empty_cache\0")
                    .map_err(linker)?,
                free: library.get(b"asyncthink_cuda_free\0").map_err(linker)?,
                _library: library,
            })
        }
    }

    /// Memory of the GPU of this index.
    pub(crate) fn memory(&self, device: usize) -> Result<MemoryUse> {
        let (mut current_bytes, mut peak_bytes, mut reserved_bytes) = (0, 0, 0);
        // SAFETY: the three places outlive the call.
        let message = unsafe {
            (self.memory)(
                index(device),
                &raw mut current_bytes,
                &raw mut peak_bytes,
                &raw mut reserved_bytes,
            )
        };
        self.check("cuda_memory", message)?;
        Ok(MemoryUse {
            current_bytes,
            peak_bytes,
            reserved_bytes,
        })
    }

    /// Bytes that tensors can still take on the GPU of this index.
    pub(crate) fn free_bytes(&self, device: usize) -> Result<u64> {
        let mut bytes = 0;
        // SAFETY: the place outlives the call.
        let message = unsafe { (self.free_memory)(index(device), &raw mut bytes) };
        self.check("cuda_free_memory", message)?;
        Ok(bytes)
    }

    /// Starts the peak anew from the present use.
    pub(crate) fn reset_peak(&self, device: usize) -> Result<()> {
        // SAFETY: the library is open and takes any index.
        let message = unsafe { (self.reset_peak)(index(device)) };
        self.check("cuda_reset_peak", message)
    }

    /// Gives memory that no tensor uses back to the driver.
    pub(crate) fn empty_cache(&self) -> Result<()> {
        // SAFETY: the library is open.
        let message = unsafe { (self.empty_cache)() };
        self.check("cuda_empty_cache", message)
    }

    fn check(&self, op: &'static str, message: *mut c_char) -> Result<()> {
        // SAFETY: the library gave the message, and `free` is its own.
        unsafe { take_message(op, message, *self.free) }
    }
}

/// An index that does not fit is one that no GPU has.
fn index(device: usize) -> c_int {
    c_int::try_from(device).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use libloading::os::unix::{RTLD_GLOBAL, RTLD_NOW};

    use super::*;
    use crate::device::libtorch_folder;

    /// Needs no GPU: `libc10_cuda.so` wants only the CUDA run-time library, which comes with libtorch.
    #[test]
    fn library_opens_and_its_errors_come_back_as_values() {
        let allocator = libtorch_folder().unwrap().join("libc10_cuda.so");
        if LIBRARY_BYTES.is_empty() {
            assert!(Statistics::open().is_err());
            return;
        }
        // SAFETY: a library of the libtorch that is loaded.
        let loaded = unsafe { Library::open(Some(allocator), RTLD_NOW | RTLD_GLOBAL) }.unwrap();
        std::mem::forget(loaded);
        let statistics = Statistics::open().unwrap();
        let error = statistics.memory(usize::MAX);
        assert!(error.is_err(), "no GPU has this index");
        assert!(statistics.free_bytes(usize::MAX).is_err());
    }
}
