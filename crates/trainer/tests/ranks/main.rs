//! Several ranks as processes of their own: the same numbers as one, checkpoints for any number of them, and failures that all
//! hear of.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests, which report what they measure"
)]

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod moments;
mod numbers;
mod processes;
