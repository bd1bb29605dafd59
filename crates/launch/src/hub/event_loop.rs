//! Carries out on node 0 what the [`Coordinator`] decides, over
//! channels to its own node and connections to the others.

use std::io;
use std::net::TcpListener;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::coordinator::{Action, Coordinator, Member};
use super::input::Input;
use super::link::Link;
use super::server::Server;
use crate::error::Error;
use crate::event::Event;
use crate::ids::{MAX_LOCAL_RANKS, NodeRank, NodeShare};
use crate::plan::LaunchPlan;
use crate::process::Console;
use crate::wire::{Connection, Hello, Order, Start};

/// How long the other nodes may take to read the last order.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The hub's thread.
#[derive(Debug)]
pub(crate) struct Hub {
    inputs: Sender<Input>,
    thread: JoinHandle<()>,
    server: Option<Server>,
}

impl Hub {
    /// Begins to coordinate, with this node as the first to join; `events`
    /// is where it gets its orders.
    pub(crate) fn start(
        plan: &LaunchPlan,
        console: &Arc<Console>,
        listener: Option<TcpListener>,
        events: Sender<Event>,
    ) -> Result<Self, Error> {
        let (inputs, incoming) = mpsc::channel();
        let server = match listener {
            None => None,
            Some(listener) => Some(Server::start(listener, plan, inputs.clone())?),
        };
        let mut event_loop = EventLoop {
            coordinator: Coordinator::new(plan.nodes.num(), plan.max_restarts),
            peers: Vec::new(),
            plan: plan.clone(),
            console: Arc::clone(console),
        };
        event_loop
            .peers
            .resize_with(plan.nodes.num() as usize, || None);
        let thread = std::thread::Builder::new()
            .name("hub".to_owned())
            .spawn(move || {
                let _notice = DisconnectNotice(events.clone());
                event_loop.run(&incoming, events);
            })?;
        Ok(Self {
            inputs,
            thread,
            server,
        })
    }

    /// Link of this node to the hub.
    pub(crate) fn link(&self) -> Link {
        Link::Local(self.inputs.clone())
    }

    /// Ends the hub, after the launch or in the middle of it; with a failure
    /// of this node the others are stopped first.
    pub(crate) fn close(self, failure: Option<&Error>) {
        let input = failure.map_or(Input::Leave, |error| Input::Abort(error.to_string()));
        let _ = self.inputs.send(input);
        let _ = self.thread.join();
        if let Some(server) = self.server {
            server.close();
        }
    }
}

/// Tells this node that the hub is gone, whatever ended it.
struct DisconnectNotice(Sender<Event>);

impl Drop for DisconnectNotice {
    fn drop(&mut self) {
        let _ = self.0.send(Event::Lost("it ended".to_owned()));
    }
}

/// A node that has joined.
enum Peer {
    Local(Sender<Event>),
    Remote(Arc<Connection>),
}

impl Peer {
    fn tell(&self, order: Order) {
        match self {
            Self::Local(events) => {
                let _ = events.send(Event::Order(order));
            }
            Self::Remote(connection) => {
                if connection.send(&order).is_err() {
                    // The reading side reports the loss.
                    connection.cut();
                }
            }
        }
    }
}

struct EventLoop {
    coordinator: Coordinator,
    /// By node rank; empty where the node is missing.
    peers: Vec<Option<Peer>>,
    plan: LaunchPlan,
    console: Arc<Console>,
}

impl EventLoop {
    fn run(mut self, inputs: &Receiver<Input>, events: Sender<Event>) {
        let own = Member {
            host: self.plan.host.clone(),
            num_local_ranks: self.plan.num_local_ranks,
        };
        let first = self.coordinator.join(Some(NodeRank::new(0)), own);
        if let (Ok(_), Some(place)) = (first, self.peers.first_mut()) {
            *place = Some(Peer::Local(events));
        }
        self.perform();
        let mut gather_until = None;
        while !self.coordinator.has_ended() {
            if !self.coordinator.is_gathering() {
                gather_until = None;
            } else if gather_until.is_none() {
                gather_until = Some(Instant::now() + self.plan.timing.join);
            }
            match next(inputs, gather_until) {
                Some(Input::Leave) => {
                    self.peers.iter().flatten().for_each(cut);
                    return;
                }
                Some(input) => self.handle(input),
                None => self.coordinator.give_up(self.plan.timing.join),
            }
            self.perform();
        }
        self.close_peers(inputs);
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Joined {
                hello,
                connection,
                reply,
            } => {
                let node = self.admit(&hello, connection);
                let _ = reply.send(node);
            }
            Input::Report(node, report) => self.coordinator.report(node, report, Instant::now()),
            Input::Lost {
                node,
                reason,
                since,
            } => {
                if let Some(place) = self.peers.get_mut(node.index()) {
                    *place = None;
                }
                if self.coordinator.is_gathering() {
                    self.console.note(&format!("node {node} is lost: {reason}"));
                }
                self.coordinator.lose(node, &reason, since);
            }
            Input::Abort(reason) => self.coordinator.abort(&reason),
            Input::Leave => {}
        }
    }

    /// Takes a node, or tells it why not.
    fn admit(&mut self, hello: &Hello, connection: Arc<Connection>) -> Option<NodeRank> {
        let host = hello.host.clone();
        let num_local_ranks = NonZeroU32::new(hello.num_local_ranks)
            .filter(|num| num.get() <= MAX_LOCAL_RANKS)
            .ok_or_else(|| format!("it cannot have {} ranks", hello.num_local_ranks));
        let taken = num_local_ranks.and_then(|num_local_ranks| {
            let member = Member {
                host: host.clone(),
                num_local_ranks,
            };
            self.coordinator.join(hello.node_rank, member)
        });
        match taken {
            Ok(node) => {
                let num_missing = self.coordinator.missing().len();
                self.console.note(&format!(
                    "node {node} ({host}) joined, ranks: {}; nodes still missing: {num_missing}",
                    hello.num_local_ranks
                ));
                if let Some(place) = self.peers.get_mut(node.index()) {
                    *place = Some(Peer::Remote(connection));
                }
                Some(node)
            }
            Err(reason) => {
                self.console
                    .note(&format!("refused a node from {host}: {reason}"));
                let _ = connection.send(&Order::Refused(reason));
                connection.finish();
                None
            }
        }
    }

    fn perform(&mut self) {
        for action in self.coordinator.take_actions() {
            match action {
                Action::Start {
                    attempt,
                    shares,
                    world_size,
                    cause,
                } => {
                    if let Err(error) = self.start(attempt, &shares, world_size, cause.as_deref()) {
                        let reason = format!("no free port for the ranks to meet at: {error}");
                        self.coordinator.abort(&reason);
                        return self.perform();
                    }
                }
                Action::Stop { attempt, signal } => self.tell_all(&Order::Stop { attempt, signal }),
                Action::End(end) => self.tell_all(&Order::End(end)),
            }
        }
    }

    fn start(
        &self,
        attempt: u32,
        shares: &[NodeShare],
        world_size: u32,
        cause: Option<&str>,
    ) -> io::Result<()> {
        let master_port = match self.plan.master_port {
            Some(port) => port,
            None => free_port()?,
        };
        for (share, peer) in shares.iter().zip(&self.peers) {
            let Some(peer) = peer else { continue };
            peer.tell(Order::Start(Start {
                attempt,
                max_restarts: self.plan.max_restarts,
                node_rank: share.node_rank,
                num_nodes: self.plan.nodes.num(),
                first_rank: share.first_rank,
                world_size,
                master_addr: self.plan.master_addr.clone(),
                master_port,
                cause: cause.map(str::to_owned),
            }));
        }
        Ok(())
    }

    fn tell_all(&self, order: &Order) {
        for peer in self.peers.iter().flatten() {
            peer.tell(order.clone());
        }
    }

    /// Waits until the other nodes have read the last order: a connection
    /// that is dropped at once may lose it.
    fn close_peers(&mut self, inputs: &Receiver<Input>) {
        let until = Instant::now() + CLOSE_TIMEOUT;
        for peer in self.peers.iter().flatten() {
            if let Peer::Remote(connection) = peer {
                connection.finish();
            }
        }
        let is_remote = |peer: &Option<Peer>| matches!(peer, Some(Peer::Remote(_)));
        while self.peers.iter().any(is_remote) {
            match next(inputs, Some(until)) {
                Some(Input::Lost { node, .. }) => {
                    if let Some(place) = self.peers.get_mut(node.index()) {
                        *place = None;
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        self.peers.iter().flatten().for_each(cut);
    }
}

fn cut(peer: &Peer) {
    if let Peer::Remote(connection) = peer {
        connection.cut();
    }
}

/// The next input; `None` after `until`.
fn next(inputs: &Receiver<Input>, until: Option<Instant>) -> Option<Input> {
    let Some(until) = until else {
        // `Hub` holds a sender until it has sent the last input.
        return Some(inputs.recv().unwrap_or(Input::Leave));
    };
    match inputs.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(input) => Some(input),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Input::Leave),
    }
}

/// A port of this machine that nothing listens on at the moment.
fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0"))?;
    Ok(listener.local_addr()?.port())
}
