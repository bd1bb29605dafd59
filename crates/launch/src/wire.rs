//! What launchers tell one another: a line of JSON each.
//!
//! The channel carries numbers, addresses and messages, and never anything
//! that is executed. It is for a trusted network, as is the ranks' own store.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU32;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureReport};
use crate::ids::{NodeRank, Rank};
use crate::plan::{LaunchPlan, Nodes};

/// What the first line names, so that a stranger is recognised.
const PROTOCOL: &str = "asyncthink-launch";

/// Raised with every change of what is said.
const VERSION: u32 = 1;

/// Longest line; the longest that is written is a report of failures.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Most failures of a node, or of a launch, that are told.
pub(crate) const MAX_FAILURES: usize = 16;

/// Longest host name that is taken.
const MAX_HOST_BYTES: usize = 255;

/// The first line of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    protocol: String,
    version: u32,
    program_version: String,
    run_id: String,
    num_nodes: u32,
    pub(crate) node_rank: Option<NodeRank>,
    pub(crate) num_local_ranks: u32,
    pub(crate) host: String,
}

/// The part of it that every version has.
#[derive(Deserialize)]
struct HelloHead {
    protocol: String,
    version: u32,
}

impl Hello {
    pub(crate) fn of(plan: &LaunchPlan) -> Self {
        let node_rank = match &plan.nodes {
            Nodes::One => None,
            Nodes::Several { node_rank, .. } => *node_rank,
        };
        let num_local_ranks = plan.num_local_ranks.get();
        let run_id = plan.run_id.as_str();
        Self::new(
            run_id,
            plan.nodes.num(),
            node_rank,
            num_local_ranks,
            &plan.host,
        )
    }

    fn new(
        run_id: &str,
        num_nodes: u32,
        node_rank: Option<NodeRank>,
        num_local_ranks: u32,
        host: &str,
    ) -> Self {
        Self {
            protocol: PROTOCOL.to_owned(),
            version: VERSION,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            run_id: run_id.to_owned(),
            num_nodes,
            node_rank,
            num_local_ranks,
            host: host.to_owned(),
        }
    }

    /// Reads a first line that fits `expected`, the hello of node 0.
    ///
    /// The error says to the other side what does not fit.
    pub(crate) fn parse(line: &[u8], expected: &Self) -> Result<Self, String> {
        let unreadable =
            |error: serde_json::Error| format!("its first line cannot be read: {error}");
        let head: HelloHead = serde_json::from_slice(line).map_err(unreadable)?;
        differs("the protocol", &head.protocol, &expected.protocol)?;
        differs(
            "the version of the protocol",
            &head.version,
            &expected.version,
        )?;
        let hello: Self = serde_json::from_slice(line).map_err(unreadable)?;
        let program = "the version of the program";
        differs(program, &hello.program_version, &expected.program_version)?;
        differs("`--rdzv-id`", &hello.run_id, &expected.run_id)?;
        differs("`--nnodes`", &hello.num_nodes, &expected.num_nodes)?;
        if hello.host.len() > MAX_HOST_BYTES || hello.host.chars().any(char::is_control) {
            return Err("its host name cannot be shown".to_owned());
        }
        Ok(hello)
    }
}

fn differs<T: PartialEq + std::fmt::Display>(
    what: &str,
    got: &T,
    expected: &T,
) -> Result<(), String> {
    if got == expected {
        Ok(())
    } else {
        // The other side's text goes back to it alone.
        Err(format!(
            "{what} is `{expected}` on node 0 and `{got}` on this one"
        ))
    }
}

/// What node 0 tells a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// A sign of life.
    Heartbeat,
    /// The node is not taken.
    Refused(String),
    /// Start the ranks.
    Start(Start),
    /// Stop the ranks; with a signal, because of it.
    Stop { attempt: u32, signal: Option<i32> },
    /// It is over.
    End(End),
}

/// One attempt, for one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// 0, then the number of restarts.
    pub(crate) attempt: u32,
    pub(crate) max_restarts: u32,
    pub(crate) node_rank: NodeRank,
    pub(crate) num_nodes: u32,
    pub(crate) first_rank: Rank,
    pub(crate) world_size: u32,
    pub(crate) master_addr: String,
    pub(crate) master_port: u16,
    /// Why this is a restart.
    pub(crate) cause: Option<String>,
}

impl Start {
    /// Whether the world has room for that many ranks of the node.
    pub(crate) fn holds(&self, num_local_ranks: NonZeroU32) -> bool {
        let end = self.first_rank.get().checked_add(num_local_ranks.get());
        end.is_some_and(|end| end <= self.world_size) && self.node_rank.get() < self.num_nodes
    }
}

/// How a launch ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Done,
    Signalled(i32),
    Failed(FailureReport),
}

/// What a node tells node 0. Every attempt ends with one `Done` or `Stopped`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// A sign of life.
    Heartbeat,
    /// A rank failed, and the node stops its others.
    Failed { attempt: u32 },
    /// The node was told to end, and stops its ranks.
    Signalled { signal: i32 },
    /// All its ranks are done.
    Done { attempt: u32 },
    /// All its ranks have ended, not all of them well.
    Stopped {
        attempt: u32,
        failures: Vec<PastFailure>,
    },
}

/// A failure and its time, counted back because clocks of machines differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastFailure {
    pub(crate) failure: Failure,
    pub(crate) millis_ago: u64,
}

/// The writing side of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Mutex<TcpStream>,
}

impl Connection {
    /// Takes a connection; a peer that says nothing for `silence`, or does
    /// not read, counts as lost.
    pub(crate) fn new(stream: TcpStream, silence: Duration) -> io::Result<(Self, LineReader)> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        let reader = LineReader(BufReader::new(stream.try_clone()?));
        let stream = Mutex::new(stream);
        Ok((Self { stream }, reader))
    }

    /// Sets how long the peer may say nothing.
    pub(crate) fn expect_within(&self, silence: Duration) -> io::Result<()> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.set_read_timeout(Some(silence))
    }

    /// Writes one line.
    pub(crate) fn send<T: Serialize>(&self, line: &T) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&text)
    }

    /// Ends the connection, after what was written.
    pub(crate) fn finish(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection at once.
    pub(crate) fn cut(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Writes a line again and again until it cannot, or `stop` is dropped.
pub(crate) fn keep_saying<T: Serialize>(
    connection: &Connection,
    line: &T,
    interval: Duration,
    stop: &mpsc::Receiver<()>,
) {
    while stop.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        if connection.send(line).is_err() {
            return;
        }
    }
}

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct LineReader(BufReader<TcpStream>);

impl LineReader {
    /// The next line as it is.
    pub(crate) fn line(&mut self) -> Result<Vec<u8>, Unheard> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.0).take(MAX_LINE_BYTES);
        match bounded.read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => Ok(line),
            Ok(num) if num as u64 == MAX_LINE_BYTES => {
                Err(Unheard::Nonsense("it sent a line too long".to_owned()))
            }
            Ok(_) => Err(Unheard::Lost("it closed the connection".to_owned())),
            Err(error) if is_silence(&error) => Err(Unheard::Silent),
            Err(error) => Err(Unheard::Lost(format!(
                "the connection to it failed: {error}"
            ))),
        }
    }

    /// The next line as a value.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<T, Unheard> {
        let line = self.line()?;
        serde_json::from_slice(&line)
            .map_err(|error| Unheard::Nonsense(format!("its line cannot be read: {error}")))
    }
}

/// Why there is no next line.
#[derive(Debug)]
pub(crate) enum Unheard {
    /// The peer has said nothing for too long.
    Silent,
    /// The connection is gone.
    Lost(String),
    /// The peer said something else.
    Nonsense(String),
}

impl Unheard {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Silent => "nothing was heard of it for too long".to_owned(),
            Self::Lost(reason) | Self::Nonsense(reason) => reason,
        }
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn hello(run_id: &str, num_nodes: u32) -> Hello {
        Hello::new(run_id, num_nodes, None, 2, "there")
    }

    fn parse(hello: &Hello) -> Result<Hello, String> {
        let line = serde_json::to_vec(hello).expect("JSON");
        Hello::parse(&line, &self::hello("a", 2))
    }

    #[test]
    fn a_hello_that_fits_is_taken() {
        let parsed = parse(&hello("a", 2)).expect("fits");
        assert_eq!((parsed.num_local_ranks, parsed.host.as_str()), (2, "there"));
    }

    #[test]
    fn a_mismatch_is_named() {
        let refused = |hello: &Hello| parse(hello).expect_err("does not fit");
        assert_eq!(
            refused(&hello("b", 2)),
            "`--rdzv-id` is `a` on node 0 and `b` on this one"
        );
        assert!(refused(&hello("a", 3)).starts_with("`--nnodes` is `2`"));
        let mut other = hello("a", 2);
        other.version = 2;
        assert!(refused(&other).starts_with("the version of the protocol is `1`"));
        other = hello("a", 2);
        other.program_version = "0.0.0".to_owned();
        assert!(refused(&other).starts_with("the version of the program"));
        other = hello("a", 2);
        other.host = "a\u{1b}".to_owned();
        assert!(refused(&other).contains("host name"));
        let stranger = Hello::parse(b"GET / HTTP/1.1\r\n", &hello("a", 2));
        assert!(stranger.expect_err("a stranger").contains("cannot be read"));
        // Another version may say other things.
        let later = br#"{"protocol": "asyncthink-launch", "version": 9, "x": 1}"#;
        let later = Hello::parse(later, &hello("a", 2)).expect_err("a later version");
        assert!(later.starts_with("the version of the protocol"), "{later}");
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("a connection");
        (client, server)
    }

    #[test]
    fn lines_arrive_as_they_were_sent() {
        let (client, server) = pair();
        let silence = Duration::from_mins(1);
        let (ours, _) = Connection::new(client, silence).expect("a connection");
        let (_theirs, mut reader) = Connection::new(server, silence).expect("a connection");
        let order = Order::Stop {
            attempt: 3,
            signal: None,
        };
        ours.send(&Order::Heartbeat).expect("sent");
        ours.send(&order).expect("sent");
        ours.finish();
        assert_eq!(reader.next::<Order>().ok(), Some(Order::Heartbeat));
        assert_eq!(reader.next::<Order>().ok(), Some(order));
        let end = reader.next::<Order>().expect_err("the end").reason();
        assert_eq!(end, "it closed the connection");
    }

    #[test]
    fn endless_lines_and_nonsense_are_refused() {
        let (client, server) = pair();
        let silence = Duration::from_mins(1);
        let (_ours, mut reader) = Connection::new(server, silence).expect("a connection");
        let writer = std::thread::spawn(move || {
            let mut client = client;
            client.write_all(b"{}\n")?;
            client.write_all(&vec![b'x'; usize::try_from(MAX_LINE_BYTES).expect("fits")])
        });
        let nonsense = reader.next::<Order>().expect_err("no order");
        assert!(matches!(nonsense, Unheard::Nonsense(_)));
        let endless = reader.next::<Order>().expect_err("no order").reason();
        assert_eq!(endless, "it sent a line too long");
        writer.join().expect("a thread").expect("written");
    }
}
