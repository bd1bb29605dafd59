//! The built program, from the outside: arguments in, streams and exit codes
//! out. One test program, because linking libtorch takes time.

mod bad_input;
mod bench;
mod broken_ranks;
mod chat;
mod data;
mod help;
mod launch;
mod lines;
mod model_files;
#[path = "../../../crates/model/tests/common/mod.rs"]
#[allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a panic is a failed test, and the numbers are small"
)]
mod model_folder;
mod ranks;
mod score;
mod stages;
mod think;
