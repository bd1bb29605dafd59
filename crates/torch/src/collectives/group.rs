//! Process groups: making them, and what they remember.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tch::Device;

use super::failure::{CollectiveFailure, FailureKind, Suspect};
use super::ffi::{self, CGroup, CWork, Message, RawFailure};
use super::flight::{Flight, FlightRecord, Operation, Traffic};
use super::meeting;
use super::store::Store;
use super::watch::{self, Watch, lock};
use super::work::Work;
use crate::error::{Error, Result};
use crate::nccl;

/// What moves the tensors of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Nothing: a world of one rank.
    Single,
    /// gloo, over TCP between CPUs.
    Gloo,
    /// NCCL, between GPUs.
    Nccl,
}

/// Settings of a [`ProcessGroup`], but for `rank` the same on all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOptions {
    /// This rank, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
    /// How long making the group, and each of its operations, may take.
    pub timeout: Duration,
    /// Keeps groups on one store apart. After a restart on the same store, name or store's prefix must be new.
    pub name: String,
}

/// Ranks that work together, as one of them sees it.
///
/// All ranks call the same collectives in the same order with tensors of the same sizes. Every operation ends within
/// the group's time, or within that of [`ProcessGroup::within`]: well, or with an error that names the operation, the
/// phase, and the ranks that are silent or behind. After a failure the group is of no more use: every later operation
/// gives the same error.
///
/// Cloning gives the same group. Several threads may use it if something else fixes the order of their operations.
#[derive(Clone)]
pub struct ProcessGroup {
    pub(super) shared: Arc<Shared>,
    timeout: Duration,
}

pub(super) struct Shared {
    rank: usize,
    world_size: usize,
    backend: Backend,
    device: Option<Device>,
    flight: Arc<Mutex<Flight>>,
    /// Held while an operation is handed to c10d, so that its order is ours.
    order: Mutex<()>,
    failure: Mutex<Option<(FailureKind, CollectiveFailure)>>,
    link: Option<Link>,
}

/// What binds a rank to the others; a world of one has none.
struct Link {
    // Dropped first: it reads what the others outlive.
    watch: Watch,
    group: Handle,
    control: Arc<Store>,
    num_barriers: Mutex<u64>,
}

struct Handle(NonNull<CGroup>);

// SAFETY: c10d's process groups may be used by any thread, one at a time; `Shared::order` sees to that.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
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

impl ProcessGroup {
    /// A world of one rank: no store, no connections; its collectives are copies at most.
    pub fn single() -> Self {
        ProcessGroup {
            shared: Arc::new(Shared {
                rank: 0,
                world_size: 1,
                backend: Backend::Single,
                device: None,
                flight: Arc::default(),
                order: Mutex::new(()),
                failure: Mutex::new(None),
                link: None,
            }),
            timeout: Duration::MAX,
        }
    }

    /// Meets the other ranks on `store` and makes a group for tensors on `device`: NCCL's for a GPU, gloo's for the CPU.
    /// A world of one is [`ProcessGroup::single`].
    ///
    /// # Errors
    /// Ranks that do not come in time, which are named; a rank that has joined before under the same name; a rank that
    /// is none; a GPU in a program built without NCCL; a failure of c10d.
    pub fn new(store: &Store, device: Device, options: &GroupOptions) -> Result<Self> {
        let &GroupOptions {
            rank,
            world_size,
            timeout,
            ref name,
        } = options;
        meeting::check_sizes(rank, world_size)?;
        if world_size == 1 {
            return Ok(Self::single());
        }
        let store = store.prefixed(&format!("group/{name}"))?;
        let control = Arc::new(store.try_clone()?);
        let mut flight = Flight::default();
        let record = flight.start(Operation::Join, 0, 0, 0);
        // Ranks are met here and not by the backends, because these do not say who is missing.
        meeting::join(&control, options, record)?;
        let backend_store = store.prefixed("backend")?.try_clone()?;
        let (backend, group) = match device {
            Device::Cuda(_) => (Backend::Nccl, nccl::group(&backend_store, options)),
            _ => (Backend::Gloo, meeting::gloo(&backend_store, options)),
        };
        let flight = Arc::new(Mutex::new(flight));
        let mut shared = Shared {
            rank,
            world_size,
            backend,
            device: Some(device),
            flight: Arc::clone(&flight),
            order: Mutex::new(()),
            failure: Mutex::new(None),
            link: None,
        };
        let group = match group {
            Ok(group) => Handle(group),
            Err(nccl::GroupError::Made(raw)) => {
                let record = lock(&flight).start(Operation::Join, 0, 0, 0);
                return Err(shared.fail(record, timeout, raw));
            }
            Err(nccl::GroupError::Library(error)) => return Err(error),
        };
        let watch =
            Watch::start(store.try_clone()?, rank, flight).map_err(|error| Error::Torch {
                op: "process_group",
                message: format!("cannot start a thread: {error}"),
            })?;
        shared.link = Some(Link {
            watch,
            group,
            control,
            num_barriers: Mutex::new(0),
        });
        Ok(ProcessGroup {
            shared: Arc::new(shared),
            timeout,
        })
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.shared.rank
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.shared.world_size
    }

    /// What moves the tensors.
    pub fn backend(&self) -> Backend {
        self.shared.backend
    }

    /// Where its tensors must be; anywhere in a world of one.
    pub fn device(&self) -> Option<Device> {
        self.shared.device
    }

    /// How long an operation may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same group, whose operations may take `timeout`.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        ProcessGroup {
            shared: Arc::clone(&self.shared),
            timeout,
        }
    }

    /// Names what the caller does from now on, such as `grpo step 12: reduce gradients`. Errors name it, and so do the
    /// errors of other ranks that wait for this one. It costs no round trip.
    pub fn set_phase(&self, phase: &str) {
        lock(&self.shared.flight).set_phase(phase.to_owned());
        if let Some(link) = &self.shared.link {
            link.watch.tell();
        }
    }

    /// The last operation that this rank started; none yet in a world of one.
    pub fn last_operation(&self) -> Option<FlightRecord> {
        lock(&self.shared.flight).last().cloned()
    }

    /// What this rank has put in so far. A world of one moves nothing.
    pub fn traffic(&self) -> Traffic {
        lock(&self.shared.flight).traffic()
    }

    /// A digest of the kinds, sizes and roots of all collectives so far, in order. Given to
    /// [`ProcessGroup::check_same`], it finds ranks whose collectives differ and happen to fit together.
    pub fn order_digest(&self) -> u64 {
        lock(&self.shared.flight).digest()
    }

    /// Starts an operation of c10d's.
    pub(super) fn start<'t>(
        &self,
        operation: Operation,
        sizes: Sizes,
        function: impl FnOnce(*const CGroup, i64, *mut *mut CWork, *mut i32) -> Message,
    ) -> Result<Work<'t>> {
        let Some(link) = &self.shared.link else {
            return Ok(Work::done());
        };
        self.shared.check_usable()?;
        let order = lock(&self.shared.order);
        let Sizes {
            bytes,
            put_in,
            detail,
        } = sizes;
        let record = lock(&self.shared.flight).start(operation, bytes, put_in, detail);
        let (mut output, mut failure) = (std::ptr::null_mut(), 0);
        let message = function(
            link.group.0.as_ptr(),
            ffi::milliseconds(self.timeout),
            &raw mut output,
            &raw mut failure,
        );
        // SAFETY: every caller's function is one of `ffi`.
        let started = unsafe { ffi::check(message, failure) };
        drop(order);
        match started.and_then(|()| ffi::handed_over(output)) {
            Ok(handle) => Ok(Work::pending(
                handle,
                record,
                self.timeout,
                Arc::clone(&self.shared),
            )),
            Err(raw) => Err(self.shared.fail(record, self.timeout, raw)),
        }
    }

    /// Waits until all ranks have come here, over the store and not the backend, so that those who do not come in time
    /// are named, on every rank that waits for them. Slower than `barrier`.
    ///
    /// # Errors
    /// Ranks that do not come in time, or a store that is gone.
    pub fn monitored_barrier(&self) -> Result<()> {
        let Some(link) = &self.shared.link else {
            return Ok(());
        };
        self.shared.check_usable()?;
        let record = lock(&self.shared.flight).start(Operation::MonitoredBarrier, 0, 0, 0);
        let number = {
            let mut number = lock(&link.num_barriers);
            *number += 1;
            *number
        };
        let (rank, world_size) = (self.rank(), self.world_size());
        let place = format!("barrier/{number}");
        link.control.set(&format!("{place}/{rank}"), b"here")?;
        let missing = meeting::missing(&link.control, &place, world_size, self.timeout)?;
        if !missing.is_empty() {
            return Err(self.shared.miss(record, self.timeout, missing));
        }
        // Whoever has come to this barrier has left the one before.
        if number > 1 {
            link.control
                .delete(&format!("barrier/{}/{rank}", number - 1))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessGroup")
            .field("rank", &self.rank())
            .field("world_size", &self.world_size())
            .field("backend", &self.backend())
            .finish_non_exhaustive()
    }
}

/// The sizes of an operation, for its record.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) bytes: u64,
    pub(super) put_in: u64,
    pub(super) detail: u64,
}

impl Shared {
    pub(super) fn backend(&self) -> Backend {
        self.backend
    }

    fn check_usable(&self) -> Result<()> {
        match lock(&self.failure).clone() {
            Some((kind, failure)) => Err(into_error(kind, failure)),
            None => Ok(()),
        }
    }

    /// The error of an operation that c10d failed, which is the group's from now on.
    pub(super) fn fail(&self, record: FlightRecord, timeout: Duration, raw: RawFailure) -> Error {
        let mut kept = lock(&self.failure);
        if let Some((kind, failure)) = kept.clone() {
            return into_error(kind, failure);
        }
        let RawFailure { kind, mut message } = raw;
        let mut suspects = Vec::new();
        if let Some(link) = &self.link {
            link.group.abort();
            if kind != FailureKind::Other {
                let others =
                    watch::suspects(&link.control, self.rank, self.world_size, record.sequence);
                if let Some(others) = others {
                    suspects = others;
                } else {
                    let store = link.control.address();
                    message = format!("{message}; the store at `{store}` does not answer");
                }
            }
        }
        let failure = self.failure(record, timeout, message, suspects);
        *kept = Some((kind, failure.clone()));
        drop(kept);
        into_error(kind, failure)
    }

    /// The error of a barrier to which some ranks did not come.
    fn miss(&self, record: FlightRecord, timeout: Duration, missing: Vec<Suspect>) -> Error {
        let failure = self.failure(record, timeout, NOT_ALL.to_owned(), missing);
        let kind = FailureKind::Timeout;
        *lock(&self.failure) = Some((kind, failure.clone()));
        into_error(kind, failure)
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

/// Why ranks that did not come make others fail.
pub(super) const NOT_ALL: &str = "not all ranks came";

pub(super) fn into_error(kind: FailureKind, failure: CollectiveFailure) -> Error {
    let failure = Box::new(failure);
    match kind {
        FailureKind::Timeout => Error::CollectiveTimeout(failure),
        FailureKind::PeerLost => Error::PeerLost(failure),
        FailureKind::Other => Error::Collective(failure),
    }
}
