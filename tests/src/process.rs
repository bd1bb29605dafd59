//! Waiting for a running program, and signals to it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Number of lines of a file; 0 where there is no file.
pub fn num_lines(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

/// Waits until a file has more than `before` lines.
///
/// # Panics
/// Panics after a minute.
pub fn wait_for_lines(file: &Path, before: usize) {
    let start = Instant::now();
    while num_lines(file) <= before {
        assert!(start.elapsed() < Duration::from_mins(1), "nothing happens");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal, such as `-TERM`, to a process.
///
/// # Panics
/// Panics if the signal cannot be sent.
pub fn send(signal: &str, pid: u32) {
    let status = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(status.expect("`kill` runs").success());
}
