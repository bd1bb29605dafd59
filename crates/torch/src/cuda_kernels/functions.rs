//! The C functions of the library of kernels, by name.
#![expect(unsafe_code, reason = "opens a dynamic library")]

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

use crate::error::{Error, Result};
use crate::library::{FreeFn, linker_message, open_carried, take_message};

/// The kernels for GPUs, or nothing where the build found no nvcc.
static LIBRARY_BYTES: &[u8] = include_bytes!(env!("ASYNCTHINK_KERNELS_LIBRARY"));

/// The kernels for the CPU: a file of the build folder, empty in release builds.
const EMULATION: &str = env!("ASYNCTHINK_EMULATION_LIBRARY");

const OP: &str = "open_kernels";

/// Declares the table: every function gives null or a message, and its name in the library begins with `asyncthink_`.
macro_rules! functions {
    ($($(#[$doc:meta])* $field:ident: $name:literal, fn($($argument:ty),* $(,)?);)*) => {
        #[derive(Debug)]
        pub(super) struct Functions {
            $($(#[$doc])* pub(super) $field: Symbol<unsafe extern "C" fn($($argument),*) -> *mut c_char>,)*
            /// Whether the matrix units have a kernel for a kind, a head dimension and a group.
            pub(super) attention_has_mma: Symbol<unsafe extern "C" fn(i32, i64, i64) -> i32>,
            pub(super) unpin: Symbol<unsafe extern "C" fn(*mut c_void)>,
            pub(super) free: Symbol<FreeFn>,
            _library: Library,
        }

        impl Functions {
            /// # Safety
            /// The library was built from this crate's kernels.
            unsafe fn of(library: Library) -> std::result::Result<Self, libloading::Error> {
                // SAFETY: the signatures are those of the library's source.
                unsafe {
                    Ok(Self {
                        $($field: library.get(concat!("asyncthink_", $name, "\0").as_bytes())?,)*
                        attention_has_mma: library.get(b"asyncthink_attention_has_mma\0")?,
                        unpin: library.get(b"asyncthink_kernels_unpin\0")?,
                        free: library.get(b"asyncthink_kernels_free\0")?,
                        _library: library,
                    })
                }
            }
        }
    };
}

functions! {
    stream: "kernels_stream", fn(c_int, *mut *mut c_void);
    wait: "kernels_wait", fn(*mut c_void);
    /// Target, source, bytes, stream.
    upload: "kernels_upload", fn(*mut c_void, *const c_void, usize, *mut c_void);
    /// Target, source, bytes, stream.
    download: "kernels_download", fn(*mut c_void, *const c_void, usize, *mut c_void);
    pin: "kernels_pin", fn(usize, *mut *mut c_void);
    multiprocessors: "kernels_multiprocessors", fn(c_int, *mut i32);
    /// Kind; x or null, residual, weight, out; rows, hidden, eps; stream.
    add_rms_norm: "add_rms_norm", fn(
        i32,
        *const c_void, *mut c_void, *const c_void, *mut c_void,
        i64, i64, f32,
        *mut c_void,
    );
    /// Kind; gate and up, out; rows, width; stream.
    silu_mul: "silu_mul", fn(i32, *const c_void, *mut c_void, i64, i64, *mut c_void);
    /// Kind; qkv, norms of queries and keys or null, frequencies, positions, slots; q, caches of keys and values; rows,
    /// heads, key-value heads, size of a head, slots of the cache, factor of cosines and sines, eps; stream.
    rope_and_cache: "rope_and_cache", fn(
        i32,
        *const c_void, *const c_void, *const c_void, *const c_void, *const c_void, *const c_void,
        *mut c_void, *mut c_void, *mut c_void,
        i64, i64, i64, i64, i64, f32, f32,
        *mut c_void,
    );
    /// Cache, copies; copies, planes, blocks, bytes of a block; stream.
    copy_blocks: "copy_blocks", fn(*mut c_void, *const c_void, i64, i64, i64, i64, *mut c_void);
    /// Kind, path; q, caches of keys and values, tables, sequences of rows, lengths, tiles or null; out, partial results
    /// and their sums; tiles, rows, heads, key-value heads, size of a head, of a block, blocks, sequences, blocks of a
    /// table, splits; stream.
    paged_attention: "paged_attention", fn(
        i32, i32,
        *const c_void, *const c_void, *const c_void, *const c_void, *const c_void, *const c_void, *const c_void,
        *mut c_void, *mut c_void, *mut c_void,
        i64, i64, i64, i64, i64, i64, i64, i64, i64, i64,
        *mut c_void,
    );
    /// Kind; x, weight, out, reciprocal deviations; rows, width, eps; stream.
    training_norm_forward: "training_norm_forward", fn(
        i32,
        *const c_void, *const c_void, *mut c_void, *mut f32,
        i64, i64, f32,
        *mut c_void,
    );
    /// Kind; x, weight, reciprocal deviations, gradients of out and x, partial sums or null; parts, rows, width; stream.
    training_norm_backward: "training_norm_backward", fn(
        i32,
        *const c_void, *const c_void, *const f32, *const c_void, *mut c_void, *mut f32,
        i64, i64, i64,
        *mut c_void,
    );
    /// Kind; x, out, gradient or null, cosines, sines, norms of queries and keys or null, partial sums or null; parts, rows,
    /// strides of x, out and gradient, heads, key-value heads, size of a head, eps; stream.
    training_rotary: "training_rotary", fn(
        i32,
        *const c_void, *mut c_void, *const f32, *const c_void, *const c_void, *const c_void, *const c_void, *mut f32,
        i64, i64, i64, i64, i64, i64, i64, i64, f32,
        *mut c_void,
    );
    /// Kind; gate and up, gradient or null, out; rows, width; stream.
    training_gate: "training_gate", fn(
        i32,
        *mut c_void, *const c_void, *mut c_void,
        i64, i64,
        *mut c_void,
    );
    /// Kind; logits, rows, number of banned ids before each, banned ids; out; samples, vocab, banned; stream.
    sample: "sample", fn(
        i32,
        *const c_void, *const c_void, *const c_void, *const c_void,
        *mut c_void,
        i64, i64, i64,
        *mut c_void,
    );
}

impl Functions {
    pub(super) fn open_cuda() -> Result<Self> {
        if LIBRARY_BYTES.is_empty() {
            return Err(failed("built without nvcc".to_owned()));
        }
        let library = open_carried(OP, c"asyncthink_kernels", LIBRARY_BYTES)?;
        // SAFETY: it is what this crate's build script has built.
        unsafe { Self::of(library) }.map_err(|error| failed(linker_message(&error)))
    }

    pub(super) fn open_emulated() -> Result<Self> {
        let is_there = Path::new(EMULATION)
            .metadata()
            .is_ok_and(|file| file.len() > 0);
        if !is_there {
            return Err(failed("a release build has no emulation".to_owned()));
        }
        // SAFETY: it is what this crate's build script has built; loading it runs no code of its own.
        let functions = unsafe {
            Library::open(Some(EMULATION), RTLD_NOW | RTLD_LOCAL)
                .and_then(|library| Self::of(library))
        };
        functions.map_err(|error| failed(linker_message(&error)))
    }

    /// Turns what a function gave into a result.
    pub(super) fn check(&self, op: &'static str, message: *mut c_char) -> Result<()> {
        // SAFETY: the library gave the message, and `free` is its own.
        unsafe { take_message(op, message, *self.free) }
    }
}

fn failed(message: String) -> Error {
    Error::Torch { op: OP, message }
}
