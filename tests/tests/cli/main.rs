//! The built program, from the outside: arguments in, streams and exit codes
//! out. One test program, because linking libtorch takes time.

mod bad_input;
mod broken_ranks;
mod chat;
mod data;
mod help;
mod launch;
mod lines;
mod model_files;
mod ranks;
mod score;
mod stages;
mod think;
