//! The kernels of training rows, handed to the C++ side, which calls them between its products.
#![expect(unsafe_code, reason = "hands over functions of a library")]

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use super::Kernels;
use super::functions::Functions;
use crate::ffi;
use crate::library::FreeFn;

/// The table as the C++ side reads it.
#[repr(C)]
#[derive(Debug)]
struct RawRowKernels {
    stream: unsafe extern "C" fn(c_int, *mut *mut c_void) -> *mut c_char,
    norm_forward: NormForward,
    norm_backward: NormBackward,
    rotary: Rotary,
    gate: Gate,
    free: FreeFn,
}

type NormForward = unsafe extern "C" fn(
    i32,
    *const c_void,
    *const c_void,
    *mut c_void,
    *mut f32,
    i64,
    i64,
    f32,
    *mut c_void,
) -> *mut c_char;

type NormBackward = unsafe extern "C" fn(
    i32,
    *const c_void,
    *const c_void,
    *const f32,
    *const c_void,
    *mut c_void,
    *mut f32,
    i64,
    i64,
    i64,
    *mut c_void,
) -> *mut c_char;

type Rotary = unsafe extern "C" fn(
    i32,
    *const c_void,
    *mut c_void,
    *const f32,
    *const c_void,
    *const c_void,
    *const c_void,
    *const c_void,
    *mut f32,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    f32,
    *mut c_void,
) -> *mut c_char;

type Gate = unsafe extern "C" fn(
    i32,
    *mut c_void,
    *const c_void,
    *mut c_void,
    i64,
    i64,
    *mut c_void,
) -> *mut c_char;

impl RawRowKernels {
    fn of(functions: &Functions) -> Self {
        Self {
            stream: *functions.stream,
            norm_forward: *functions.training_norm_forward,
            norm_backward: *functions.training_norm_backward,
            rotary: *functions.training_rotary,
            gate: *functions.training_gate,
            free: *functions.free,
        }
    }
}

impl Kernels {
    /// Lets [`crate::LayerTensors`] compute rows with these kernels from now on: those of GPUs on any GPU, emulated ones on the CPU.
    pub(crate) fn serve_training(self) {
        static TABLES: [OnceLock<RawRowKernels>; 2] = [const { OnceLock::new() }; 2];
        let is_emulated = self.is_emulated();
        let table =
            TABLES[usize::from(is_emulated)].get_or_init(|| RawRowKernels::of(self.functions));
        // SAFETY: the table and the library, which is never closed, live as long as the program.
        unsafe { ffi::asyncthink_set_row_kernels(std::ptr::from_ref(table).cast(), is_emulated) };
    }

    /// Takes emulated kernels away again.
    #[cfg(test)]
    pub(crate) fn end_emulated_training() {
        // SAFETY: null is no table.
        unsafe { ffi::asyncthink_set_row_kernels(std::ptr::null(), true) };
    }
}
