//! Memory of the host that a GPU reads and writes by itself.
#![expect(unsafe_code, reason = "owns memory of a foreign allocator")]

use std::ffi::c_void;
use std::ptr::NonNull;

use tch::Tensor;

use super::Kernels;
use crate::error::{Error, Result};

/// Bytes of the host, zero at first, for copies that do not hold up the host.
#[derive(Debug)]
pub struct PinnedBuffer {
    kernels: Kernels,
    place: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes belong to the buffer alone, and may be used and freed by any thread.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates `len` bytes.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(kernels: Kernels, len: usize) -> Result<Self> {
        let mut place = std::ptr::null_mut::<c_void>();
        // SAFETY: `place` outlives the call.
        let message = unsafe { (kernels.functions.pin)(len.max(1), &raw mut place) };
        kernels.check("pin", message)?;
        let place = NonNull::new(place.cast::<u8>()).ok_or_else(|| Error::Torch {
            op: "pin",
            message: "no memory".to_owned(),
        })?;
        // SAFETY: so many bytes were just allocated at this place.
        unsafe { std::ptr::write_bytes(place.as_ptr(), 0, len) };
        Ok(Self {
            kernels,
            place,
            len,
        })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer has so many bytes, which are initialised and belong to it.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.len) }
    }

    /// The bytes, to be written. A copy from an earlier [`Kernels::upload`] must be over: after [`Kernels::wait`] or
    /// [`Kernels::download`] it is.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the buffer is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.place.as_ptr(), self.len) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // A copy may be under way; a failure here is one of an earlier kernel, and somebody else's to tell.
        let _ = self.kernels.wait();
        // SAFETY: allocated by the same library and freed once.
        unsafe { (self.kernels.functions.unpin)(self.place.as_ptr().cast()) }
    }
}

impl Kernels {
    /// Copies the first `len` bytes of the host into a tensor, whatever its kind; the host goes on at once.
    ///
    /// # Errors
    /// When one of them is smaller, or the tensor is elsewhere or not contiguous.
    pub fn upload(&self, target: &Tensor, source: &PinnedBuffer, len: usize) -> Result<()> {
        let place = self.bytes_of("upload", target, len, source.len)?;
        let stream = self.stream()?;
        // SAFETY: both have at least `len` bytes, and the source outlives the copy: dropping or writing it comes after.
        let message =
            unsafe { (self.functions.upload)(place, source.place.as_ptr().cast(), len, stream) };
        self.check("upload", message)
    }

    /// Copies the first `len` bytes of a tensor to the host, and waits for that and all before it.
    ///
    /// # Errors
    /// As [`Self::upload`]; and failures of earlier kernels.
    pub fn download(&self, target: &mut PinnedBuffer, source: &Tensor, len: usize) -> Result<()> {
        let place = self.bytes_of("download", source, len, target.len)?;
        let stream = self.stream()?;
        // SAFETY: both have at least `len` bytes, and the call returns when the copy is done.
        let message =
            unsafe { (self.functions.download)(target.place.as_ptr().cast(), place, len, stream) };
        self.check("download", message)
    }

    fn bytes_of(
        &self,
        op: &'static str,
        tensor: &Tensor,
        len: usize,
        host_len: usize,
    ) -> Result<*mut c_void> {
        let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
        if tensor.device() == self.device
            && tensor.is_contiguous()
            && len <= bytes
            && len <= host_len
        {
            return Ok(tensor.data_ptr());
        }
        Err(Error::Argument {
            op,
            argument: "len",
            expected: format!(
                "at most {} bytes of a contiguous tensor on {:?}",
                bytes.min(host_len),
                self.device
            ),
            got: format!("{len} bytes of a tensor on {:?}", tensor.device()),
        })
    }
}
