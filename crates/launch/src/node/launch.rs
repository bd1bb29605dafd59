//! The whole of a launch on one node.

use std::net::TcpListener;
use std::sync::Arc;

use super::agent::{Node, Outcome};
use super::join::{Joined, join};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::event::Inbox;
use crate::hub::{Hub, Link};
use crate::plan::{LaunchPlan, Nodes};
use crate::process::Console;
use crate::wire;

/// Console, signals and listener of a launch.
#[derive(Debug)]
pub struct LaunchIo {
    /// Where output and notes go.
    pub console: Arc<Console>,
    /// Where signals come from.
    pub inbox: Inbox,
    /// On node 0 of several, where the others connect to, in place of the
    /// port of the endpoint.
    pub listener: Option<TcpListener>,
}

/// Role of this node.
enum Role<'a> {
    /// Node 0, with a listener where there are others.
    Coordinator(Option<TcpListener>),
    Member(&'a Endpoint),
}

/// Runs the ranks of this node, and on node 0 coordinates all nodes, until
/// the launch is over. No rank runs any more then.
///
/// The calling thread starts the ranks, and the kernel kills them when it
/// ends: it is best the program's first.
///
/// # Errors
/// Fails if the launch cannot be begun: no folder for logs, no connection to
/// node 0, or options that differ from node 0's. A failure of the ranks is an
/// [`Outcome`].
pub fn launch(plan: &LaunchPlan, io: LaunchIo) -> Result<Outcome, Error> {
    let LaunchIo {
        console,
        inbox,
        listener,
    } = io;
    if let Some(folder) = &plan.output.log_dir {
        fs_err::create_dir_all(folder).map_err(|source| Error::NoLogDir { source })?;
    }
    if plan.num_local_ranks.get() > 1 && std::env::var_os("OMP_NUM_THREADS").is_none() {
        console.note("OMP_NUM_THREADS is not set, and is 1 for every rank");
    }
    match role(plan, listener)? {
        Role::Coordinator(listener) => {
            if let Nodes::Several {
                num_nodes,
                endpoint,
                ..
            } = &plan.nodes
            {
                console.note(&format!(
                    "waiting for {num_nodes} nodes at {endpoint}, this one included"
                ));
            }
            let hub = Hub::start(plan, &console, listener, inbox.sender.clone())?;
            let outcome = Node::new(plan, &console, &inbox, hub.link()).run();
            hub.close(outcome.as_ref().err());
            outcome
        }
        Role::Member(endpoint) => {
            console.note(&format!("joining node 0 at {endpoint}"));
            match join(plan, endpoint, &inbox)? {
                Joined::Signalled(signal) => Ok(Outcome::Signalled(signal)),
                Joined::Connected(membership) => {
                    let link = Link::Remote(membership.connection());
                    Node::new(plan, &console, &inbox, link).run()
                }
            }
        }
    }
}

fn role(plan: &LaunchPlan, listener: Option<TcpListener>) -> Result<Role<'_>, Error> {
    let Nodes::Several {
        node_rank,
        endpoint,
        ..
    } = &plan.nodes
    else {
        return Ok(Role::Coordinator(None));
    };
    if listener.is_some() {
        return Ok(Role::Coordinator(listener));
    }
    // A name that is not known now would be tried in vain for as long as a node may take to join.
    let is_first = node_rank.is_some_and(|node| node.get() == 0);
    if let (false, Err(error)) = (is_first, wire::resolve(endpoint)) {
        return Err(Error::UnknownHost {
            what: "--rdzv-endpoint",
            host: endpoint.host().to_owned(),
            reason: error.to_string(),
        });
    }
    match node_rank {
        Some(node) if node.get() == 0 => wire::listen(endpoint).map(Some).map(Role::Coordinator),
        Some(_) => Ok(Role::Member(endpoint)),
        None if !wire::is_here(endpoint) => Ok(Role::Member(endpoint)),
        None => match wire::listen(endpoint) {
            // Another launcher of this machine was first.
            Err(Error::Listen { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                Ok(Role::Member(endpoint))
            }
            listener => listener.map(Some).map(Role::Coordinator),
        },
    }
}
