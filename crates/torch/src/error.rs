//! Errors of the boundary between Rust and libtorch.

use std::path::PathBuf;

use crate::collectives::{CollectiveFailure, Difference, FailureKind};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of libtorch or of what it is asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device that is not `auto`, `cpu`, `cuda` or `cuda:N`.
    #[error("unknown device: `{value}`")]
    UnknownDevice {
        /// What was asked for.
        value: String,
    },
    /// CUDA was asked for, but this libtorch was built without it.
    #[error("device `{device}` needs `libtorch_cuda.so`, which is not in `{}`", folder.display())]
    NoCudaLibrary {
        /// What was asked for.
        device: String,
        /// Where libtorch is.
        folder: PathBuf,
    },
    /// The CUDA half of libtorch could not be opened.
    #[error("device `{device}` needs `{}`, which cannot be opened: {reason}", library.display())]
    CudaLibrary {
        /// What was asked for.
        device: String,
        /// The library.
        library: PathBuf,
        /// The dynamic linker's words.
        reason: String,
    },
    /// The CUDA libraries are there, but no GPU is.
    #[error("device `{device}` needs a GPU, and CUDA finds none")]
    NoGpu {
        /// What was asked for.
        device: String,
    },
    /// A GPU index that does not exist.
    #[error("device `{device}` does not exist: number of GPUs here is {count}")]
    NoSuchGpu {
        /// What was asked for.
        device: String,
        /// How many GPUs there are.
        count: usize,
    },
    /// The running program does not have libtorch loaded where it can be found.
    #[error("cannot tell where libtorch is loaded from: {reason}")]
    LibtorchNotFound {
        /// Why.
        reason: String,
    },
    /// An argument of an operation has the wrong shape, kind, device or layout.
    #[error("`{op}`: `{argument}` must be {expected}, not {got}")]
    Argument {
        /// Name of the operation.
        op: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// libtorch refused or failed an operation.
    #[error("`{op}` failed: {message}")]
    Torch {
        /// Name of the operation.
        op: &'static str,
        /// First line of libtorch's message.
        message: String,
    },
    /// A call on the store of the ranks ran out of time.
    #[error("`{op}` on the store at `{address}` timed out: {message}")]
    StoreTimeout {
        /// Name of the call.
        op: &'static str,
        /// Host and port of the store.
        address: String,
        /// c10d's words.
        message: String,
    },
    /// A call on the store of the ranks failed.
    #[error("`{op}` on the store at `{address}` failed: {message}")]
    Store {
        /// Name of the call.
        op: &'static str,
        /// Host and port of the store.
        address: String,
        /// c10d's words.
        message: String,
    },
    /// A collective ran out of time: a rank is dead, stuck, slow or at another operation.
    #[error("`{op}` timed out after {timeout:?} {failure}", op = .0.op(), timeout = .0.timeout, failure = .0)]
    CollectiveTimeout(Box<CollectiveFailure>),
    /// A collective lost the connection to another rank, which is dead or has given up.
    #[error("`{op}` lost a rank {failure}", op = .0.op(), failure = .0)]
    PeerLost(Box<CollectiveFailure>),
    /// A collective failed for another reason.
    #[error("`{op}` failed {failure}", op = .0.op(), failure = .0)]
    Collective(Box<CollectiveFailure>),
    /// Something that all ranks must agree on is not the same on all.
    #[error("{0}")]
    RanksDiffer(Box<Difference>),
    /// The number of threads was set after the threads were started.
    #[error("cannot use {requested} threads: {current} are already running")]
    ThreadsStarted {
        /// The number asked for.
        requested: usize,
        /// The number running.
        current: usize,
    },
}

impl Error {
    /// An error of libtorch in `op`, from its full text, which holds a C++ backtrace after the first line.
    pub(crate) fn torch(op: &'static str, text: &str) -> Self {
        let message = text.lines().next().unwrap_or_default().trim().to_owned();
        Error::Torch { op, message }
    }

    /// The error of a collective that failed in this way.
    pub(crate) fn collective(kind: FailureKind, failure: CollectiveFailure) -> Self {
        let failure = Box::new(failure);
        match kind {
            FailureKind::Timeout => Error::CollectiveTimeout(failure),
            FailureKind::PeerLost => Error::PeerLost(failure),
            FailureKind::Other => Error::Collective(failure),
        }
    }

    /// What the user can do about it, where there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::UnknownDevice { .. } => Some("use `auto`, `cpu`, `cuda` or `cuda:N`"),
            Error::NoCudaLibrary { .. } | Error::CudaLibrary { .. } => Some(
                "run `scripts/setup.sh --cuda` to fetch the CUDA libraries, or set `device = \"cpu\"`",
            ),
            Error::NoGpu { .. } => Some(
                "check `nvidia-smi` and `CUDA_VISIBLE_DEVICES`, or set `device = \"auto\"` or `\"cpu\"`",
            ),
            Error::NoSuchGpu { .. } => {
                Some("GPUs are counted from 0; `CUDA_VISIBLE_DEVICES` hides some")
            }
            Error::CollectiveTimeout(_) | Error::PeerLost(_) => Some(
                "the logs of the ranks named tell what happened there; raise the timeout if a rank was only slow",
            ),
            Error::Store { .. } | Error::StoreTimeout { .. } => Some(
                "check that the process that serves the store runs, and that host and port can be reached from here",
            ),
            Error::RanksDiffer(_) => Some(
                "all ranks need the same recipe, data and program; compare what they were started with",
            ),
            _ => None,
        }
    }
}

/// Gives an error of `tch` the name of the operation.
pub(crate) trait OpContext<T> {
    /// Names the operation that failed.
    fn op(self, op: &'static str) -> Result<T>;
}

impl<T> OpContext<T> for std::result::Result<T, tch::TchError> {
    fn op(self, op: &'static str) -> Result<T> {
        self.map_err(|error| match error {
            tch::TchError::Torch(text) => Error::torch(op, &text),
            other => Error::torch(op, &other.to_string()),
        })
    }
}
