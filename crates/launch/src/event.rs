//! Events of one node, and the channel on which they arrive.

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::SystemTime;

use crate::failure::Exit;
use crate::ids::LocalRank;
use crate::plan::StopSignal;
use crate::wire::Order;

/// Event of a node.
#[derive(Debug)]
pub(crate) enum Event {
    /// Node 0 says what to do.
    Order(Order),
    /// Node 0 is gone, for a reason.
    Lost(String),
    /// The process at node 0's address is not a launcher.
    NotALauncher(String),
    /// A rank has ended.
    Ended {
        attempt: u32,
        local_rank: LocalRank,
        exit: Exit,
        at: SystemTime,
    },
    /// The launch is told to end.
    Signal(StopSignal),
}

/// Receiver of the events of a launch.
#[derive(Debug)]
pub struct Inbox {
    pub(crate) sender: Sender<Event>,
    pub(crate) events: Receiver<Event>,
}

impl Default for Inbox {
    fn default() -> Self {
        let (sender, events) = mpsc::channel();
        Self { sender, events }
    }
}

impl Inbox {
    /// Sender that delivers signals to the launch.
    pub fn signal_sender(&self) -> SignalSender {
        SignalSender(self.sender.clone())
    }
}

/// Delivers signals to a launch.
#[derive(Clone, Debug)]
pub struct SignalSender(pub(crate) Sender<Event>);

impl SignalSender {
    /// Has the effect of the signal on the launch; none after its end.
    pub fn send(&self, signal: StopSignal) {
        let _ = self.0.send(Event::Signal(signal));
    }
}
