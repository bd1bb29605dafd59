//! Node 0's part: the decisions for all nodes, and the connections over which they go out.

mod coordinator;
mod event_loop;
mod input;
mod link;
mod server;

pub(crate) use event_loop::Hub;
pub(crate) use link::Link;
