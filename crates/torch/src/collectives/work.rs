//! An operation under way.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use tch::Tensor;

use super::ffi::{self, CWork};
use super::flight::FlightRecord;
use super::options::Backend;
use super::shared::Shared;
use crate::error::Result;

/// An operation that may still run. Its tensors are borrowed for `'t`: they hold their results only after
/// [`Work::wait`].
///
/// Dropped without waiting, it waits; a failure is then kept by the group, whose next operation reports it.
#[must_use = "the tensors hold their results only after `wait`"]
pub struct Work<'t> {
    pending: Option<Pending>,
    tensors: PhantomData<&'t mut Tensor>,
}

struct Pending {
    handle: Handle,
    record: FlightRecord,
    timeout: Duration,
    shared: Arc<Shared>,
}

struct Handle(NonNull<CWork>);

// SAFETY: c10d's works may be waited for and freed by any thread; they hold references of their own to their tensors.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the work was handed over to `self` and is freed once.
        unsafe { ffi::asyncthink_work_free(self.0.as_ptr()) }
    }
}

impl Work<'_> {
    /// An operation that had nothing to do.
    pub(super) fn done() -> Self {
        Work {
            pending: None,
            tensors: PhantomData,
        }
    }

    pub(super) fn pending(
        handle: NonNull<CWork>,
        record: FlightRecord,
        timeout: Duration,
        shared: Arc<Shared>,
    ) -> Self {
        Work {
            pending: Some(Pending {
                handle: Handle(handle),
                record,
                timeout,
                shared,
            }),
            tensors: PhantomData,
        }
    }

    /// Waits until the operation is done, on GPUs too, which ends within the operation's time.
    ///
    /// # Errors
    /// A timeout, a lost rank, or another failure of the operation, or of one before it in its group.
    pub fn wait(mut self) -> Result<()> {
        match self.pending.take() {
            Some(pending) => pending.wait(),
            None => Ok(()),
        }
    }

    /// As [`Work::wait`], but on a GPU only what is queued on the current stream from now on waits, not the caller.
    ///
    /// A rank that is dead then shows at the next operation that waits, or when c10d's watchdog ends the process.
    ///
    /// # Errors
    /// As [`Work::wait`], where the failure is known by now.
    pub fn wait_on_device(mut self) -> Result<()> {
        match self.pending.take() {
            Some(pending) => pending.wait_on_device(),
            None => Ok(()),
        }
    }

    /// Whether the operation is done, well or not. With gloo, `send` and `recv` never are before they are waited for.
    pub fn is_completed(&self) -> bool {
        self.pending.as_ref().is_none_or(Pending::is_completed)
    }

    /// The same operation without the borrow of its tensors, to be kept in a structure beside them. The memory lives as
    /// long as the operation; it is the caller's part not to use it before [`Work::wait`].
    pub fn detached(mut self) -> Work<'static> {
        Work {
            pending: self.pending.take(),
            tensors: PhantomData,
        }
    }
}

impl Pending {
    fn wait(self) -> Result<()> {
        let timeout_ms = ffi::milliseconds(self.timeout);
        match (self.shared.backend(), self.record.operation) {
            (Backend::Nccl, _) => self.wait_for(timeout_ms, true),
            // Every step of gloo's collectives has the operation's time. A time for waiting would count from now, and
            // what is queued behind others must not fail for that.
            (_, operation) if operation.is_collective() => self.wait_for(0, false),
            // Sends have no time of their own.
            _ => self.wait_for(timeout_ms, false),
        }
    }

    fn wait_on_device(self) -> Result<()> {
        match self.shared.backend() {
            Backend::Nccl => self.wait_for(0, false),
            Backend::Gloo | Backend::Single => self.wait(),
        }
    }

    fn wait_for(self, timeout_ms: i64, poll: bool) -> Result<()> {
        let mut failure = 0;
        // SAFETY: the work lives and `failure` outlives the call.
        let waited = unsafe {
            let message = ffi::asyncthink_work_wait(
                self.handle.0.as_ptr(),
                timeout_ms,
                poll,
                &raw mut failure,
            );
            ffi::check(message, failure)
        };
        waited.map_err(|raw| self.shared.fail(self.record, self.timeout, raw))
    }

    fn is_completed(&self) -> bool {
        let (mut is_completed, mut failure) = (false, 0);
        // SAFETY: the work lives and the places outlive the call.
        let asked = unsafe {
            let message = ffi::asyncthink_work_is_completed(
                self.handle.0.as_ptr(),
                &raw mut is_completed,
                &raw mut failure,
            );
            ffi::check(message, failure)
        };
        // A failure ends it too; `wait` tells which.
        is_completed || asked.is_err()
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            // The group keeps the failure.
            let _ = pending.wait();
        }
    }
}

impl std::fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let record = self.pending.as_ref().map(|pending| &pending.record);
        f.debug_struct("Work")
            .field("record", &record)
            .finish_non_exhaustive()
    }
}
