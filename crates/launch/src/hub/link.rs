//! Connection of a node to the hub.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::input::Input;
use crate::ids::NodeRank;
use crate::wire::{Connection, Report};

/// Link from a node to node 0.
#[derive(Debug)]
pub(crate) enum Link {
    /// It is this node.
    Local(Sender<Input>),
    /// Over the network.
    Remote(Arc<Connection>),
}

impl Link {
    pub(crate) fn report(&self, report: Report) {
        match self {
            Self::Local(hub) => {
                let _ = hub.send(Input::Report(NodeRank::new(0), report));
            }
            Self::Remote(connection) => {
                if connection.send(&report).is_err() {
                    // The reading side says why.
                    connection.cut();
                }
            }
        }
    }
}
