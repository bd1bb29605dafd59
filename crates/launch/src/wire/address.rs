//! Addresses of node 0: resolving and listening.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _};

use crate::endpoint::Endpoint;
use crate::error::Error;

/// Listens at the port of an endpoint.
///
/// A name is often that of a loopback address on its own machine, so only a
/// host that says so itself is taken for one.
pub(crate) fn listen(endpoint: &Endpoint) -> Result<TcpListener, Error> {
    bind(endpoint).map_err(|source| Error::Listen {
        port: endpoint.port(),
        source,
    })
}

fn bind(endpoint: &Endpoint) -> io::Result<TcpListener> {
    let (host, port) = (endpoint.host(), endpoint.port());
    let literal = host.parse::<IpAddr>();
    let is_loopback = host == "localhost" || literal.is_ok_and(|address| address.is_loopback());
    if is_loopback {
        return TcpListener::bind((host, port));
    }
    let any: IpAddr = match resolve(endpoint) {
        Ok(addresses) if addresses.iter().all(SocketAddr::is_ipv6) => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    TcpListener::bind((any, port))
}

/// All addresses of an endpoint, at least one.
pub(crate) fn resolve(endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = (endpoint.host(), endpoint.port())
        .to_socket_addrs()?
        .collect();
    if addresses.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    Ok(addresses)
}

/// Whether an endpoint is this machine.
pub(crate) fn is_here(endpoint: &Endpoint) -> bool {
    let addresses = resolve(endpoint).unwrap_or_default();
    let mut hosts = addresses.iter().map(SocketAddr::ip);
    hosts.any(|host| TcpListener::bind((host, 0)).is_ok())
}
