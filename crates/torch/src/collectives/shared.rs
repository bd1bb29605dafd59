//! State of a process group that its clones and its operations share.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tch::Device;

use super::failure::{CollectiveFailure, FailureKind, NOT_ALL, Suspect, no_answer};
use super::ffi::{self, CGroup, RawFailure};
use super::flight::{Flight, FlightRecord};
use super::options::Backend;
use super::store::Store;
use super::watch::{self, Watch, lock};
use crate::error::{Error, Result};

pub(super) struct Shared {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) backend: Backend,
    pub(super) device: Option<Device>,
    pub(super) flight: Arc<Mutex<Flight>>,
    /// Held while an operation is handed to c10d, so that its order is ours.
    pub(super) order: Mutex<()>,
    pub(super) failure: Mutex<Option<(FailureKind, CollectiveFailure)>>,
    pub(super) link: Option<Link>,
}

/// Connection of a rank to the others; a world of one has none.
pub(super) struct Link {
    // Dropped first: it reads what the others outlive.
    pub(super) watch: Watch,
    pub(super) group: Handle,
    pub(super) control: Arc<Store>,
    pub(super) num_barriers: Mutex<u64>,
}

pub(super) struct Handle(NonNull<CGroup>);

// SAFETY: c10d's process groups may be used by any thread, one at a time; `Shared::order` sees to that.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// Takes over a group that the C++ side has made.
    pub(super) fn new(group: NonNull<CGroup>) -> Self {
        Self(group)
    }

    pub(super) fn as_ptr(&self) -> *const CGroup {
        self.0.as_ptr()
    }

    /// Ends what waits for the lost ranks on a GPU, and c10d's watchdog, which would end the process before anything is
    /// reported. Nothing to do for gloo.
    fn abort(&self) {
        let mut failure = 0;
        // SAFETY: the group lives. A failure adds nothing to the one that brought us here.
        let _ = unsafe {
            let message = ffi::asyncthink_group_abort(self.0.as_ptr(), &raw mut failure);
            ffi::check(message, failure)
        };
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut failure = 0;
        // SAFETY: the group was handed over to `self` and is freed once.
        unsafe { ffi::asyncthink_group_free(self.0.as_ptr(), &raw mut failure) }
    }
}

impl Shared {
    pub(super) fn backend(&self) -> Backend {
        self.backend
    }

    pub(super) fn check_usable(&self) -> Result<()> {
        match lock(&self.failure).clone() {
            Some((kind, failure)) => Err(Error::collective(kind, failure)),
            None => Ok(()),
        }
    }

    /// The error of an operation that c10d failed, which is the group's from now on.
    pub(super) fn fail(&self, record: FlightRecord, timeout: Duration, raw: RawFailure) -> Error {
        let mut kept = lock(&self.failure);
        if let Some((kind, failure)) = kept.clone() {
            return Error::collective(kind, failure);
        }
        let RawFailure { kind, mut message } = raw;
        let mut suspects = Vec::new();
        if let Some(link) = &self.link {
            link.group.abort();
            if kind != FailureKind::Other {
                let others = watch::suspects(
                    &link.watch,
                    &link.control,
                    self.rank,
                    self.world_size,
                    record.sequence,
                );
                if let Some(others) = others {
                    suspects = others;
                } else {
                    message = format!("{message}; {}", no_answer(&link.control.address()));
                    suspects.extend(link.watch.store_rank_as_suspect());
                }
            }
        }
        let failure = self.failure(record, timeout, message, suspects);
        *kept = Some((kind, failure.clone()));
        drop(kept);
        Error::collective(kind, failure)
    }

    /// The error of a barrier to which some ranks did not come.
    pub(super) fn miss(
        &self,
        record: FlightRecord,
        timeout: Duration,
        missing: Vec<Suspect>,
    ) -> Error {
        let failure = self.failure(record, timeout, NOT_ALL.to_owned(), missing);
        let kind = FailureKind::Timeout;
        *lock(&self.failure) = Some((kind, failure.clone()));
        Error::collective(kind, failure)
    }

    fn failure(
        &self,
        record: FlightRecord,
        timeout: Duration,
        message: String,
        suspects: Vec<Suspect>,
    ) -> CollectiveFailure {
        CollectiveFailure {
            record,
            rank: self.rank,
            world_size: self.world_size,
            timeout,
            message,
            suspects,
        }
    }
}
