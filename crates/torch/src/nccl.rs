//! Process groups of GPUs, from a library carried as bytes and opened after `libtorch_cuda.so`.
#![expect(
    unsafe_code,
    reason = "opens a dynamic library and calls its functions"
)]

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::time::Duration;

use libloading::os::unix::{Library, Symbol};

use crate::collectives::ffi::{CGroup, CStore, RawFailure, handed_over, int, milliseconds};
use crate::collectives::{GroupOptions, Store};
use crate::error::{Error, Result};
use crate::library::{linker_message, open_carried};

/// The library, or nothing where the build found no headers of NCCL.
static LIBRARY_BYTES: &[u8] = include_bytes!(env!("ASYNCTHINK_NCCL_LIBRARY"));

/// How long after our own timeout c10d's watchdog ends the process.
const GRACE: Duration = Duration::from_mins(2);

type GroupFn =
    unsafe extern "C" fn(*const CStore, i32, i32, i64, *mut *mut CGroup, *mut i32) -> *mut c_char;
type FreeFn = unsafe extern "C" fn(*mut c_char);

struct Nccl {
    group: Symbol<GroupFn>,
    free: Symbol<FreeFn>,
    _library: Library,
}

static NCCL: OnceLock<Nccl> = OnceLock::new();

/// Why there is no group.
pub(crate) enum GroupError {
    /// The library cannot be used.
    Library(Error),
    /// c10d failed.
    Made(RawFailure),
}

impl From<RawFailure> for GroupError {
    fn from(raw: RawFailure) -> Self {
        GroupError::Made(raw)
    }
}

/// A group of NCCL's for the GPU of this process. The device must have been opened before.
pub(crate) fn group(store: &Store, options: &GroupOptions) -> Result<NonNull<CGroup>, GroupError> {
    let nccl = opened().map_err(GroupError::Library)?;
    let (mut output, mut failure) = (std::ptr::null_mut(), 0);
    // SAFETY: the store lives and the places outlive the call.
    let message = unsafe {
        (nccl.group)(
            store.as_ptr(),
            int(options.rank),
            int(options.world_size),
            milliseconds(options.timeout.saturating_add(GRACE)),
            &raw mut output,
            &raw mut failure,
        )
    };
    if message.is_null() {
        return Ok(handed_over(output)?);
    }
    // SAFETY: a non-null message is a NUL-terminated string, freed once below by the library that made it.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    let raw = RawFailure::new(failure, &text);
    // SAFETY: as above.
    unsafe { (nccl.free)(message) };
    Err(raw.into())
}

fn opened() -> Result<&'static Nccl> {
    if let Some(nccl) = NCCL.get() {
        return Ok(nccl);
    }
    let opened = Nccl::open()?;
    // Another thread may have been faster; either will do.
    Ok(NCCL.get_or_init(|| opened))
}

impl Nccl {
    fn open() -> Result<Self> {
        const OP: &str = "open_nccl";
        let failed = |message: String| Error::Torch { op: OP, message };
        if LIBRARY_BYTES.is_empty() {
            return Err(failed(
                "built without the headers of NCCL; `scripts/setup.sh` fetches them".to_owned(),
            ));
        }
        let library = open_carried(OP, c"asyncthink_nccl", LIBRARY_BYTES)?;
        let linker = |error: libloading::Error| failed(linker_message(&error));
        // SAFETY: the signatures are those of `cpp/collectives_cuda.cpp`.
        unsafe {
            Ok(Nccl {
                group: library.get(b"asyncthink_group_nccl\0").map_err(linker)?,
                free: library.get(b"asyncthink_nccl_free\0").map_err(linker)?,
                _library: library,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the CUDA libraries the library cannot be opened, which must come back as a value.
    #[test]
    fn a_missing_library_is_an_error() {
        if let Err(error) = opened() {
            let error = error.to_string();
            assert!(error.starts_with("`open_nccl` failed: "), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
