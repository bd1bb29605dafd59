//! The organizer-worker language: tags, streaming recogniser, legality, traces, latency, concurrency.
//!
//! An organizer thinks in plain text and hands out work with three actions, each of them text:
//! Fork (`<FORK1>sub-query</FORK1>`) starts a worker, Join (`<JOIN1>`) waits for it and puts what it
//! returned into the organizer's context, Answer (`<ANSWER>...</ANSWER>`) ends the episode. A worker
//! returns with `<RETURN>...</RETURN>`.
//!
//! # Why this is one crate
//!
//! Four programs must agree on this language to the byte: the rollout that drives a model, the
//! writer of cold-start traces, the checker of trace files, and the metrics. They share one
//! recogniser ([`OrganizerMachine`]), which reads *decoded* bytes in pieces of any size and never
//! sees injected text, so that returned text is data by construction. They share one accounting
//! ([`Timeline`]), which can only be built from a consistent set of numbers and computes the
//! critical-path latency twice, by recursion and by an independent event simulation.
//!
//! There is no input, output, tensor or token id here: tokens enter as counts.
//!
//! # Paper
//!
//! arXiv:2510.26658, section 2 (protocol) and section 3 (Eq. 1 concurrency, Eq. 4 latency). Where we
//! differ or decide, `docs/protocol.md` has the list.

mod error;
mod ids;
mod organizer;
mod render;
mod simulation;
mod tags;
mod timeline;
mod trace;
mod worker;

pub use error::{FormatError, MalformedKind};
pub use ids::{Capacity, SubQueryId, WorkerIndex};
pub use organizer::{Action, OrganizerMachine, Overflow, Protocol};
pub use render::{RenderError, Step, TraceBuilder};
pub use simulation::Simulation;
pub use tags::{ANSWER_CLOSE, ANSWER_OPEN, RETURN_CLOSE, RETURN_OPEN, TagStyle};
pub use timeline::{Concurrency, ForkPoint, Fragment, Timeline, TimelineError};
pub use trace::{
    CharCounter, RawTrace, RawWorker, Span, SpanKind, TokenCounter, Trace, TraceError, TraceWorker,
};
pub use worker::{WorkerMachine, returned_text};
