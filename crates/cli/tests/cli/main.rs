//! The built program, from the outside: arguments in, streams and exit codes
//! out. One test program, because linking libtorch takes time.

mod bad_input;
mod help;
mod lines;
mod stages;
mod workspace;
