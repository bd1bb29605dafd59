//! Shared libraries that the program carries as bytes.
#![expect(unsafe_code, reason = "opens a dynamic library")]

use std::ffi::{CStr, c_char, c_int};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::error::{Error, Result};
use crate::ffi;

/// Opens a library that this program carries as bytes, one that this crate's build script compiled.
pub(crate) fn open_carried(op: &'static str, name: &CStr, bytes: &'static [u8]) -> Result<Library> {
    let mut descriptor: c_int = -1;
    // SAFETY: the name is NUL-terminated, the bytes are static, and `descriptor` outlives the call.
    unsafe {
        let message = ffi::asyncthink_memory_file(
            name.as_ptr(),
            bytes.as_ptr(),
            bytes.len(),
            &raw mut descriptor,
        );
        ffi::check(op, message)?;
    }
    // The file stays open: the linker knows libraries by their path, and would take another one opened under the same
    // number for this one.
    let path = format!("/proc/self/fd/{descriptor}");
    // SAFETY: the initialisers of our own libraries fill constants of libtorch's headers and do no more.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| Error::Torch {
        op,
        message: linker_message(&error),
    })
}

/// Message of the dynamic linker, without libloading's wrapping.
pub(crate) fn linker_message(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Frees a message of a carried library.
pub(crate) type FreeFn = unsafe extern "C" fn(*mut c_char);

/// Turns the message that a function of a carried library returned into a result: null is success.
///
/// # Safety
/// `message` is null, or a NUL-terminated string of the library that `free` belongs to, and is not used again.
pub(crate) unsafe fn take_message(
    op: &'static str,
    message: *mut c_char,
    free: FreeFn,
) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a NUL-terminated string, as the caller promises.
    let text = unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: freed once, by the library that made it.
    unsafe { free(message) };
    Err(Error::torch(op, &text))
}
