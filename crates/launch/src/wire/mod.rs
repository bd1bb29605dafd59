//! Messages between launchers: one line of JSON each, over TCP.
//!
//! The channel carries numbers, addresses and messages, and never anything
//! that is executed. It is for a trusted network, as is the ranks' own store.

mod address;
mod connection;
mod hello;
mod message;

pub(crate) use address::{is_here, listen, resolve};
pub(crate) use connection::{BEATS, Connection, LineReader, ReceiveError, send_repeatedly};
pub(crate) use hello::Hello;
pub(crate) use message::{End, MAX_FAILURES, Order, PastFailure, Report, Start};
