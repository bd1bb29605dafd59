//! Process groups: making them, and what they remember.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tch::Device;

use super::ffi::{self, CGroup, CWork, Message};
use super::flight::{Flight, FlightRecord, Operation, Traffic};
use super::meeting;
use super::options::{Backend, GroupOptions};
use super::shared::{Handle, Link, Shared};
use super::store::Store;
use super::watch::{Watch, lock};
use super::work::Work;
use crate::error::{Error, Result};
use crate::nccl;

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
    /// Ranks that do not come in time, which are named; two processes of one rank; a rank that is none; a GPU in a program
    /// built without NCCL; a failure of c10d.
    pub fn new(store: &Store, device: Device, options: &GroupOptions) -> Result<Self> {
        meeting::check_sizes(options.rank, options.world_size)?;
        if options.world_size == 1 {
            return Ok(Self::single());
        }
        Self::with_backend(store, device, options)
    }

    /// [`ProcessGroup::new`] with the backend of the device in a world of one too, to see that it works.
    ///
    /// # Errors
    /// As [`ProcessGroup::new`].
    pub fn with_backend(store: &Store, device: Device, options: &GroupOptions) -> Result<Self> {
        let &GroupOptions {
            rank,
            world_size,
            timeout,
            ref name,
            store_rank,
        } = options;
        meeting::check_sizes(rank, world_size)?;
        let store = store.prefixed(&format!("group/{name}/{world_size}"))?;
        let mut flight = Flight::default();
        flight.set_phase(format!("{name}: joining the ranks"));
        let record = flight.start(Operation::Join, 0, 0, 0);
        // Ranks are met here and not by the backends, because these do not say who is missing.
        let agreed = meeting::join(&store, options, record.clone())?;
        let store = store.prefixed(&agreed)?;
        let control = Arc::new(store.try_clone()?);
        let backend_store = store.prefixed("backend")?.try_clone()?;
        let (backend, group) = if device.is_cuda() {
            let group = nccl::group(&backend_store, options);
            (Backend::Nccl, group.map(Handle::new))
        } else {
            let group = meeting::gloo_bounded(backend_store, options)?;
            let unanswered = || meeting::unanswered(&store, options, record);
            (Backend::Gloo, group.ok_or_else(unanswered)?)
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
            Ok(group) => group,
            Err(nccl::GroupError::Made(raw)) => {
                let record = lock(&flight).start(Operation::Join, 0, 0, 0);
                return Err(shared.fail(record, timeout, raw));
            }
            Err(nccl::GroupError::Library(error)) => return Err(error),
        };
        let watch =
            Watch::start(store.try_clone()?, rank, store_rank, flight).map_err(|error| {
                Error::Torch {
                    op: "process_group",
                    message: format!("cannot start a thread: {error}"),
                }
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
            link.group.as_ptr(),
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
