//! Meeting the other ranks on the store, and connecting to them.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::ptr::NonNull;
use std::time::Duration;

use super::bounded::{GRACE, bounded};
use super::failure::{CollectiveFailure, FailureKind, NOT_ALL, Suspect, SuspectReason, no_answer};
use super::ffi::{self, CGroup};
use super::flight::FlightRecord;
use super::options::GroupOptions;
use super::rendezvous::{Meeting, meet};
use super::shared::Handle;
use super::store::Store;
use crate::error::{Error, Result};
use crate::nccl;

/// Checks that `rank` is a rank.
pub(super) fn check_sizes(rank: usize, world_size: usize) -> Result<()> {
    let error = |argument, expected: String, got: usize| Error::Argument {
        op: "process_group",
        argument,
        expected,
        got: got.to_string(),
    };
    // c10d counts in `int`.
    if world_size == 0 || i32::try_from(world_size).is_err() {
        return Err(error("world_size", "at least 1".to_owned(), world_size));
    }
    if rank >= world_size {
        return Err(error("rank", format!("below {world_size}"), rank));
    }
    Ok(())
}

/// Meets the other ranks on the store; returns the name of the group that they form.
pub(super) fn join(store: &Store, options: &GroupOptions, record: FlightRecord) -> Result<String> {
    let &GroupOptions {
        rank,
        world_size,
        timeout,
        ..
    } = options;
    let own = store.prefixed("meeting")?;
    let met = bounded(timeout.saturating_add(GRACE), move || {
        meet(&own, rank, world_size, timeout)
    })?;
    match met.transpose()? {
        Some(Meeting::Complete(name)) => Ok(name),
        Some(Meeting::Missing(missing)) => {
            let message = NOT_ALL.to_owned();
            Err(timed_out(options, record, message, missing))
        }
        None => Err(unanswered(store, options, record)),
    }
}

/// The error of ranks that meet on a store that has stopped to answer.
pub(super) fn unanswered(store: &Store, options: &GroupOptions, record: FlightRecord) -> Error {
    let message = no_answer(&store.address());
    let others = options.store_rank.filter(|other| *other != options.rank);
    let silent = others.map(|rank| Suspect {
        rank,
        reason: SuspectReason::Silent,
        sequence: record.sequence,
        phase: record.phase.clone(),
    });
    timed_out(options, record, message, silent.into_iter().collect())
}

fn timed_out(
    options: &GroupOptions,
    record: FlightRecord,
    message: String,
    suspects: Vec<Suspect>,
) -> Error {
    let failure = CollectiveFailure {
        record,
        rank: options.rank,
        world_size: options.world_size,
        timeout: options.timeout,
        message,
        suspects,
    };
    Error::collective(FailureKind::Timeout, failure)
}

/// The ranks that have not set their key at `place` within the time.
pub(super) fn missing(
    store: &Store,
    place: &str,
    world_size: usize,
    timeout: Duration,
) -> Result<Vec<Suspect>> {
    let keys: Vec<String> = (0..world_size)
        .map(|rank| format!("{place}/{rank}"))
        .collect();
    let all: Vec<&str> = keys.iter().map(String::as_str).collect();
    match store.wait(&all, timeout) {
        Ok(()) => return Ok(Vec::new()),
        Err(Error::StoreTimeout { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut missing = Vec::new();
    for (rank, key) in all.iter().enumerate() {
        if !store.has(&[key])? {
            missing.push(Suspect::missing(rank));
        }
    }
    Ok(missing)
}

/// A group of gloo's, once all ranks are there.
fn gloo(store: &Store, options: &GroupOptions) -> Result<NonNull<CGroup>, nccl::GroupError> {
    let address = gloo_address(store.host(), store.port());
    let (mut output, mut failure) = (std::ptr::null_mut(), 0);
    // SAFETY: the store lives, the address is null or NUL-terminated, and the places outlive the call.
    unsafe {
        let message = ffi::asyncthink_group_gloo(
            store.as_ptr(),
            ffi::int(options.rank),
            ffi::int(options.world_size),
            ffi::milliseconds(options.timeout),
            address
                .as_ref()
                .map_or(std::ptr::null(), |text| text.as_ptr()),
            &raw mut output,
            &raw mut failure,
        );
        ffi::check(message, failure)?;
    }
    Ok(ffi::handed_over(output)?)
}

/// As [`gloo`], and nothing if the store does not answer.
pub(super) fn gloo_bounded(
    store: Store,
    options: &GroupOptions,
) -> Result<Option<Result<Handle, nccl::GroupError>>> {
    let limit = options.timeout.saturating_add(GRACE);
    let options = options.clone();
    bounded(limit, move || gloo(&store, &options).map(Handle::new))
}

/// The address that gloo listens at: the one from which this machine reaches the store, as the other ranks do. Left to
/// itself, gloo takes that of the machine's own name, which need not resolve, and is often a loopback address that others
/// cannot reach. `GLOO_SOCKET_IFNAME` goes before, as in PyTorch.
fn gloo_address(host: &str, port: u16) -> Option<CString> {
    if std::env::var_os("GLOO_SOCKET_IFNAME").is_some() {
        return None;
    }
    let local = (host, port).to_socket_addrs().ok()?.find_map(|store| {
        let any: IpAddr = match store {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Nothing is sent: the system only looks up the way.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(store).ok()?;
        socket.local_addr().ok()
    })?;
    CString::new(local.ip().to_string()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gloo_listens_where_the_way_to_the_store_begins() {
        let listens_at = |host| gloo_address(host, 1).and_then(|text| text.into_string().ok());
        assert_eq!(listens_at("127.0.0.1").as_deref(), Some("127.0.0.1"));
        let address: IpAddr = listens_at("localhost").unwrap().parse().unwrap();
        assert!(address.is_loopback());
        assert_eq!(listens_at("no-such-host.invalid"), None);
    }
}
