//! Where node 0 listens for the other nodes.

use std::io;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::hub::Input;
use crate::ids::NodeRank;
use crate::plan::LaunchPlan;
use crate::spec::Endpoint;
use crate::wire::{Connection, Hello, LineReader, Order, Report, Unheard, keep_saying};

/// How often new connections are looked for.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(100);

/// How long a connection may take to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(30);

/// Most connections at a time that have not introduced themselves.
const MAX_STRANGERS: usize = 64;

/// Heartbeats within the time after which a silent peer is lost.
pub(crate) const BEATS: u32 = 6;

/// The thread that accepts connections.
#[derive(Debug)]
pub(crate) struct Server {
    is_closed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// What the thread of a connection needs.
#[derive(Clone)]
struct Reception {
    expected: Hello,
    silence: Duration,
    inputs: Sender<Input>,
    num_strangers: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start(
        listener: TcpListener,
        plan: &LaunchPlan,
        inputs: Sender<Input>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let is_closed = Arc::new(AtomicBool::new(false));
        let reception = Reception {
            expected: Hello::of(plan),
            silence: plan.timing.heartbeat,
            inputs,
            num_strangers: Arc::default(),
        };
        let closed = Arc::clone(&is_closed);
        let thread = std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || {
                while !closed.load(Ordering::Relaxed) {
                    match reception.has_room().then(|| listener.accept()) {
                        Some(Ok((stream, _))) => reception.receive(stream),
                        // Nobody is there, or too many are.
                        Some(Err(_)) | None => std::thread::sleep(ACCEPT_INTERVAL),
                    }
                }
            })?;
        Ok(Self { is_closed, thread })
    }

    pub(crate) fn close(self) {
        self.is_closed.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

impl Reception {
    /// Others wait until somebody has been introduced.
    fn has_room(&self) -> bool {
        self.num_strangers.load(Ordering::Relaxed) < MAX_STRANGERS
    }

    fn receive(&self, stream: TcpStream) {
        self.num_strangers.fetch_add(1, Ordering::Relaxed);
        let reception = self.clone();
        let thread = std::thread::Builder::new().name("node".to_owned());
        let spawned = thread.spawn(move || {
            let introduced = reception.introduce(stream);
            reception.num_strangers.fetch_sub(1, Ordering::Relaxed);
            if let Some((connection, reader, node)) = introduced {
                reception.listen(&connection, reader, node);
            }
        });
        if spawned.is_err() {
            self.num_strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Learns who it is; `None` where it is not taken.
    fn introduce(&self, stream: TcpStream) -> Option<(Arc<Connection>, LineReader, NodeRank)> {
        let (connection, mut reader) = Connection::new(stream, INTRODUCTION).ok()?;
        let line = reader.line().ok()?;
        let hello = match Hello::parse(&line, &self.expected) {
            Ok(hello) => hello,
            Err(reason) => {
                let _ = connection.send(&Order::Refused(reason));
                connection.finish();
                return None;
            }
        };
        let connection = Arc::new(connection);
        let (reply, node) = mpsc::channel();
        let joined = Input::Joined {
            hello,
            connection: Arc::clone(&connection),
            reply,
        };
        self.inputs.send(joined).ok()?;
        let node = node.recv().ok().flatten()?;
        if connection.expect_within(self.silence).is_err() {
            // It is lost as soon as it is listened to.
            connection.cut();
        }
        Some((connection, reader, node))
    }

    /// Passes on what a node says until it is lost.
    fn listen(&self, connection: &Arc<Connection>, mut reader: LineReader, node: NodeRank) {
        let (_alive, stop) = mpsc::channel();
        let interval = self.silence / BEATS;
        let beating = Arc::clone(connection);
        let beat = std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || keep_saying(&beating, &Order::Heartbeat, interval, &stop));
        let mut heard = Instant::now();
        let unheard = loop {
            if let Err(error) = &beat {
                break Unheard::Lost(format!("no thread for it: {error}"));
            }
            match reader.next::<Report>() {
                Ok(report) => {
                    heard = Instant::now();
                    if self.inputs.send(Input::Report(node, report)).is_err() {
                        return connection.cut();
                    }
                }
                Err(unheard) => break unheard,
            }
        };
        let since = match unheard {
            Unheard::Silent => heard,
            _ => Instant::now(),
        };
        connection.cut();
        let reason = unheard.reason();
        let _ = self.inputs.send(Input::Lost {
            node,
            reason,
            since,
        });
    }
}

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
