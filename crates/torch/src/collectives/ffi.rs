//! The C functions of stores and process groups, and the rules for calling them.

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

use torch_sys::C_tensor;

use super::failure::FailureKind;

/// A store on the C++ side.
#[repr(C)]
pub(crate) struct CStore {
    _private: [u8; 0],
}

/// A process group on the C++ side.
#[repr(C)]
pub(crate) struct CGroup {
    _private: [u8; 0],
}

/// A collective under way on the C++ side.
#[repr(C)]
pub(super) struct CWork {
    _private: [u8; 0],
}

/// What every function returns: null, or a message.
pub(crate) type Message = *mut c_char;

unsafe extern "C" {
    fn asyncthink_free(message: *mut c_char);

    pub(super) fn asyncthink_store_tcp(
        host: *const c_char,
        port: u16,
        is_server: bool,
        num_workers: usize,
        wait_for_workers: bool,
        timeout_ms: i64,
        output: *mut *mut CStore,
        bound_port: *mut u16,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_prefix(
        store: *const CStore,
        prefix: *const c_char,
        output: *mut *mut CStore,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_clone(
        store: *const CStore,
        output: *mut *mut CStore,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_set(
        store: *const CStore,
        key: *const c_char,
        value: *const u8,
        size: usize,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_get(
        store: *const CStore,
        key: *const c_char,
        value: *mut *mut c_char,
        size: *mut usize,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_add(
        store: *const CStore,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_wait(
        store: *const CStore,
        keys: *const *const c_char,
        count: usize,
        timeout_ms: i64,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_has(
        store: *const CStore,
        keys: *const *const c_char,
        count: usize,
        has: *mut bool,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_compare_set(
        store: *const CStore,
        key: *const c_char,
        expected: *const u8,
        expected_size: usize,
        desired: *const u8,
        desired_size: usize,
        value: *mut *mut c_char,
        size: *mut usize,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_delete(
        store: *const CStore,
        key: *const c_char,
        existed: *mut bool,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_store_free(store: *mut CStore);

    pub(super) fn asyncthink_group_gloo(
        store: *const CStore,
        rank: i32,
        world_size: i32,
        timeout_ms: i64,
        address: *const c_char,
        output: *mut *mut CGroup,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_group_abort(group: *const CGroup, failure: *mut i32) -> Message;
    pub(super) fn asyncthink_group_free(group: *mut CGroup, failure: *mut i32);

    pub(super) fn asyncthink_all_reduce(
        group: *const CGroup,
        tensors: *const *const C_tensor,
        count: usize,
        reduction: i32,
        timeout_ms: i64,
        output: *mut *mut CWork,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_broadcast(
        group: *const CGroup,
        tensor: *const C_tensor,
        root: i32,
        timeout_ms: i64,
        output: *mut *mut CWork,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_reduce_scatter(
        group: *const CGroup,
        input: *const C_tensor,
        target: *const C_tensor,
        reduction: i32,
        timeout_ms: i64,
        native: bool,
        output: *mut *mut CWork,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_all_gather(
        group: *const CGroup,
        input: *const C_tensor,
        target: *const C_tensor,
        timeout_ms: i64,
        output: *mut *mut CWork,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_barrier(
        group: *const CGroup,
        timeout_ms: i64,
        cuda_device: i32,
        output: *mut *mut CWork,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_send(
        group: *const CGroup,
        tensor: *const C_tensor,
        to: i32,
        output: *mut *mut CWork,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_recv(
        group: *const CGroup,
        tensor: *const C_tensor,
        from: i32,
        output: *mut *mut CWork,
        failure: *mut i32,
    ) -> Message;

    pub(super) fn asyncthink_work_wait(
        work: *mut CWork,
        timeout_ms: i64,
        poll: bool,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_work_is_completed(
        work: *const CWork,
        is_completed: *mut bool,
        failure: *mut i32,
    ) -> Message;
    pub(super) fn asyncthink_work_free(work: *mut CWork);
}

/// A failure as the C++ side tells it.
#[derive(Debug)]
pub(crate) struct RawFailure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

impl RawFailure {
    /// From the number and the text of `cpp/collectives.h`; the text becomes one line.
    pub(crate) fn new(code: i32, text: &str) -> Self {
        let kind = match code {
            1 => FailureKind::Timeout,
            2 => FailureKind::PeerLost,
            _ => FailureKind::Other,
        };
        let lines: Vec<&str> = text
            .lines()
            .take_while(|line| !line.starts_with("Exception raised from "))
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        RawFailure {
            kind,
            message: lines.join(" "),
        }
    }
}

/// Turns what a function of this module returned into a result, freeing the message.
///
/// # Safety
/// `message` is null or was returned by a function of this module and is not used again.
pub(super) unsafe fn check(message: Message, failure: i32) -> Result<(), RawFailure> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string that lives until it is freed below.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    let failure = RawFailure::new(failure, &text);
    // SAFETY: the message was allocated by `strdup` and is freed once.
    unsafe { asyncthink_free(message) };
    Err(failure)
}

/// The object that a function handed over when it succeeded.
pub(crate) fn handed_over<T>(pointer: *mut T) -> Result<NonNull<T>, RawFailure> {
    NonNull::new(pointer).ok_or_else(|| RawFailure::new(0, "nothing was handed over"))
}

/// Takes over bytes that a function of this module handed over.
///
/// # Safety
/// `data` holds `size` bytes, was handed over by a function of this module and is not used again.
pub(super) unsafe fn take_bytes(data: *mut c_char, size: usize) -> Vec<u8> {
    if data.is_null() {
        return Vec::new();
    }
    // SAFETY: as promised by the caller.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) }.to_vec();
    // SAFETY: the bytes were allocated by `malloc` and are freed once.
    unsafe { asyncthink_free(data) };
    bytes
}

/// Waits of c10d are in milliseconds, of which 0 means something else than no time at all and very many overflow.
pub(crate) fn milliseconds(timeout: std::time::Duration) -> i64 {
    const YEAR: i64 = 365 * 24 * 60 * 60 * 1000;
    i64::try_from(timeout.as_millis()).map_or(YEAR, |count| count.clamp(1, YEAR))
}

/// A rank or the like as c10d counts; groups are checked to fit.
pub(crate) fn int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
