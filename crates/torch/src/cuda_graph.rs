//! CUDA graphs: the work of a step recorded once, and started again as a whole.
#![expect(
    unsafe_code,
    reason = "opens a dynamic library and calls its functions"
)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

use libloading::os::unix::{Library, Symbol};
use tch::Device;

use crate::error::{Error, Result};
use crate::library::{FreeFn, linker_message, open_carried, take_message};

/// The library, or nothing where the build found no CUDA headers.
static LIBRARY_BYTES: &[u8] = include_bytes!(env!("ASYNCTHINK_GRAPH_LIBRARY"));

const OP: &str = "cuda_graph";

type GraphFn = unsafe extern "C" fn(*mut c_void) -> *mut c_char;

/// The functions of `cpp/cuda_graph.cpp`.
#[derive(Debug)]
struct Functions {
    new: Symbol<unsafe extern "C" fn(c_int, *mut *mut c_void) -> *mut c_char>,
    enter: Symbol<GraphFn>,
    begin: Symbol<unsafe extern "C" fn(*mut c_void, *mut c_void) -> *mut c_char>,
    end: Symbol<GraphFn>,
    leave: Symbol<GraphFn>,
    replay: Symbol<GraphFn>,
    drop: Symbol<unsafe extern "C" fn(*mut c_void)>,
    free: Symbol<FreeFn>,
    _library: Library,
}

impl Functions {
    fn opened() -> Result<&'static Self> {
        static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
        if FUNCTIONS.get().is_none() {
            // Another thread may have been faster; either will do.
            let _ = FUNCTIONS.set(Self::open()?);
        }
        FUNCTIONS
            .get()
            .ok_or_else(|| failed("the library was not kept".to_owned()))
    }

    fn open() -> Result<Self> {
        if LIBRARY_BYTES.is_empty() {
            return Err(failed("built without the CUDA headers".to_owned()));
        }
        let library = open_carried(OP, c"asyncthink_graph", LIBRARY_BYTES)?;
        let linker = |error: libloading::Error| failed(linker_message(&error));
        // SAFETY: the signatures are those of `cpp/cuda_graph.cpp`.
        unsafe {
            Ok(Self {
                new: library.get(b"asyncthink_graph_new\0").map_err(linker)?,
                enter: library.get(b"asyncthink_graph_enter\0").map_err(linker)?,
                begin: library.get(b"asyncthink_graph_begin\0").map_err(linker)?,
                end: library.get(b"asyncthink_graph_end\0").map_err(linker)?,
                leave: library.get(b"asyncthink_graph_leave\0").map_err(linker)?,
                replay: library.get(b"asyncthink_graph_replay\0").map_err(linker)?,
                drop: library.get(b"asyncthink_graph_drop\0").map_err(linker)?,
                free: library.get(b"asyncthink_graph_free\0").map_err(linker)?,
                _library: library,
            })
        }
    }

    fn check(&self, message: *mut c_char) -> Result<()> {
        // SAFETY: the library gave the message, and `free` is its own.
        unsafe { take_message(OP, message, *self.free) }
    }
}

/// Recorded work of a GPU.
///
/// Tensors that it reads and writes stay where they are: new values are copied into them, then [`Self::replay`] computes
/// with these. What the recorded work allocates belongs to the graph.
#[derive(Debug)]
pub struct CudaGraph {
    functions: &'static Functions,
    graph: NonNull<c_void>,
}

// SAFETY: the graph belongs to this value alone, and CUDA lets any thread start and drop it.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Runs `work` twice on a stream of its own: once so that whatever libraries set up at their first use is there, and
    /// once to be recorded, which computes nothing. Gives the recorded graph and what `work` gave then: tensors that hold
    /// results after each replay.
    ///
    /// `work` must not wait for the device, nor copy from or to the host. Memory is shared with `other`, if there is one:
    /// the two must then not run at the same time, and what one has allocated is void when the other runs.
    ///
    /// # Errors
    /// When `work` fails, the device is no GPU, or CUDA cannot record the work.
    pub fn record<T, E: From<Error>>(
        device: Device,
        other: Option<&CudaGraph>,
        mut work: impl FnMut() -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        let graph = Self::new(device)?;
        let result = {
            let _inside = graph.enter()?;
            drop(work()?);
            graph.begin(other)?;
            let result = work();
            let ended = graph.end();
            // The reason for a failed recording is in what the work itself says.
            let result = result?;
            ended?;
            result
        };
        Ok((graph, result))
    }

    /// Starts the recorded work on the stream that libtorch uses now; does not wait for it.
    ///
    /// # Errors
    /// A failure of CUDA.
    pub fn replay(&self) -> Result<()> {
        self.call(&self.functions.replay)
    }

    fn new(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else {
            return Err(failed(format!("{device:?} is no GPU")));
        };
        let functions = Functions::opened()?;
        let mut graph = std::ptr::null_mut();
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: `graph` outlives the call.
        functions.check(unsafe { (functions.new)(index, &raw mut graph) })?;
        let graph = NonNull::new(graph).ok_or_else(|| failed("no graph was made".to_owned()))?;
        Ok(Self { functions, graph })
    }

    fn enter(&self) -> Result<Inside<'_>> {
        self.call(&self.functions.enter)?;
        Ok(Inside(self))
    }

    fn begin(&self, other: Option<&CudaGraph>) -> Result<()> {
        let other = other.map_or(std::ptr::null_mut(), |other| other.graph.as_ptr());
        // SAFETY: both graphs are alive, or the second is null.
        self.functions
            .check(unsafe { (self.functions.begin)(self.graph.as_ptr(), other) })
    }

    fn end(&self) -> Result<()> {
        self.call(&self.functions.end)
    }

    fn call(&self, function: &Symbol<GraphFn>) -> Result<()> {
        // SAFETY: the graph is alive, and the function one of the library that made it.
        self.functions
            .check(unsafe { function(self.graph.as_ptr()) })
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: made by the same library and dropped once.
        unsafe { (self.functions.drop)(self.graph.as_ptr()) }
    }
}

/// Work of this thread goes to the stream that can be recorded, until this is dropped.
struct Inside<'a>(&'a CudaGraph);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // The next CUDA call reports a failure as well.
        let _ = self.0.call(&self.0.functions.leave);
    }
}

fn failed(message: String) -> Error {
    Error::Torch { op: OP, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine without a GPU a failure must come back as a value.
    #[test]
    fn recording_without_a_gpu_is_an_error() {
        let error = CudaGraph::record(Device::Cpu, None, || Ok::<_, Error>(())).unwrap_err();
        assert_eq!(error.to_string(), "`cuda_graph` failed: Cpu is no GPU");
        // Without the CUDA libraries the library cannot be opened.
        if let Err(error) = CudaGraph::record(Device::Cuda(0), None, || Ok::<_, Error>(())) {
            let error = error.to_string();
            assert!(error.starts_with("`cuda_graph` failed: "), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
