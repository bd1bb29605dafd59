//! Connection from a node to node 0.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::event::{Event, Inbox};
use crate::plan::{LaunchPlan, StopSignal};
use crate::wire::{
    BEATS, Connection, Hello, LineReader, Order, ReceiveError, Report, resolve, send_repeatedly,
};

/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(500);

/// Result of an attempt to join.
#[derive(Debug)]
pub(crate) enum Joined {
    Connected(Membership),
    /// The launch was told to end before.
    Signalled(StopSignal),
}

/// A connection to node 0, cut when it is dropped.
#[derive(Debug)]
pub(crate) struct Membership {
    connection: Arc<Connection>,
    /// Ends the heartbeats.
    _alive: Sender<()>,
}

impl Membership {
    pub(crate) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.connection.cut();
    }
}

/// Connects to node 0, which may come later than this node; from then on its
/// orders are among the events.
pub(crate) fn join(plan: &LaunchPlan, endpoint: &Endpoint, inbox: &Inbox) -> Result<Joined, Error> {
    let until = Instant::now() + plan.timing.join;
    let stream = loop {
        let reason = match connect(endpoint) {
            Ok(stream) => break stream,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= until {
            return Err(Error::Unreachable {
                endpoint: endpoint.clone(),
                waited: plan.timing.join,
                reason,
            });
        }
        // Nothing but a signal can come before the orders.
        if let Ok(Event::Signal(signal)) = inbox.events.recv_timeout(RETRY) {
            return Ok(Joined::Signalled(signal));
        }
    };
    let silence = plan.timing.heartbeat;
    let (connection, reader) = Connection::new(stream, silence)?;
    connection.send(&Hello::of(plan))?;
    let connection = Arc::new(connection);
    let (alive, stop) = mpsc::channel();
    let membership = Membership {
        connection: Arc::clone(&connection),
        _alive: alive,
    };
    let events = inbox.sender.clone();
    std::thread::Builder::new()
        .name("orders".to_owned())
        .spawn(move || listen(reader, &events))?;
    std::thread::Builder::new()
        .name("heartbeat".to_owned())
        .spawn(move || send_repeatedly(&connection, &Report::Heartbeat, silence / BEATS, &stop))?;
    Ok(Joined::Connected(membership))
}

fn connect(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let mut failure = None;
    for address in resolve(endpoint)? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            // Where nobody listens, a connection may meet itself.
            Ok(stream) if stream.local_addr()? == address => {
                failure = Some(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(stream) => return Ok(stream),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Passes on node 0's orders until it is lost.
fn listen(mut reader: LineReader, events: &Sender<Event>) {
    let mut is_known = false;
    loop {
        let event = match reader.next::<Order>() {
            Ok(order) => Event::Order(order),
            Err(ReceiveError::Malformed(reason)) if !is_known => Event::NotALauncher(reason),
            Err(error) => Event::Lost(error.reason()),
        };
        is_known = matches!(event, Event::Order(_));
        if events.send(event).is_err() || !is_known {
            return;
        }
    }
}
