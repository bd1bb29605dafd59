//! Server on node 0 to which the other nodes connect.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::input::Input;
use crate::ids::NodeRank;
use crate::plan::LaunchPlan;
use crate::wire::{
    BEATS, Connection, Hello, LineReader, Order, ReceiveError, Report, send_repeatedly,
};

/// Interval between looks for new connections.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(100);

/// Time that a connection has to send its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);

/// Most connections at a time that have not sent their hello.
const MAX_PENDING_CONNECTIONS: usize = 64;

/// The thread that accepts connections.
#[derive(Debug)]
pub(crate) struct Server {
    is_closed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// State that the thread of a connection shares.
#[derive(Clone)]
struct NodeListener {
    expected: Hello,
    silence: Duration,
    inputs: Sender<Input>,
    num_pending: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start(
        listener: TcpListener,
        plan: &LaunchPlan,
        inputs: Sender<Input>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let is_closed = Arc::new(AtomicBool::new(false));
        let listener_state = NodeListener {
            expected: Hello::of(plan),
            silence: plan.timing.heartbeat,
            inputs,
            num_pending: Arc::default(),
        };
        let closed = Arc::clone(&is_closed);
        let thread = std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || {
                while !closed.load(Ordering::Relaxed) {
                    match listener_state.has_room().then(|| listener.accept()) {
                        Some(Ok((stream, _))) => listener_state.receive(stream),
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

impl NodeListener {
    /// Further connections wait until a pending one has sent its hello.
    fn has_room(&self) -> bool {
        self.num_pending.load(Ordering::Relaxed) < MAX_PENDING_CONNECTIONS
    }

    fn receive(&self, stream: TcpStream) {
        self.num_pending.fetch_add(1, Ordering::Relaxed);
        let listener_state = self.clone();
        let thread = std::thread::Builder::new().name("node".to_owned());
        let spawned = thread.spawn(move || {
            let identified = listener_state.identify(stream);
            listener_state.num_pending.fetch_sub(1, Ordering::Relaxed);
            if let Some((connection, reader, node)) = identified {
                listener_state.listen(&connection, reader, node);
            }
        });
        if spawned.is_err() {
            self.num_pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Reads the hello of a node; `None` where the node is not taken.
    fn identify(&self, stream: TcpStream) -> Option<(Arc<Connection>, LineReader, NodeRank)> {
        let (connection, mut reader) = Connection::new(stream, HELLO_TIMEOUT).ok()?;
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

    /// Passes on the reports of a node until it is lost.
    fn listen(&self, connection: &Arc<Connection>, mut reader: LineReader, node: NodeRank) {
        let (_alive, stop) = mpsc::channel();
        let interval = self.silence / BEATS;
        let beating = Arc::clone(connection);
        let beat = std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || send_repeatedly(&beating, &Order::Heartbeat, interval, &stop));
        let mut heard = Instant::now();
        let error = loop {
            if let Err(error) = &beat {
                break ReceiveError::Closed(format!("no thread for it: {error}"));
            }
            match reader.next::<Report>() {
                Ok(report) => {
                    heard = Instant::now();
                    if self.inputs.send(Input::Report(node, report)).is_err() {
                        return connection.cut();
                    }
                }
                Err(error) => break error,
            }
        };
        let since = match error {
            ReceiveError::Timeout => heard,
            _ => Instant::now(),
        };
        connection.cut();
        let reason = error.reason();
        let _ = self.inputs.send(Input::Lost {
            node,
            reason,
            since,
        });
    }
}
