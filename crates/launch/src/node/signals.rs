//! Forwards the signals of this process to a launch.

use std::io;

use rustix::process::Signal;
use signal_hook::iterator::{Handle, Signals};

use crate::event::SignalSender;
use crate::plan::{SignalSet, StopSignal};

/// Hands the signals of this process to a launch until it is dropped.
#[derive(Debug)]
pub struct Forwarding(Handle);

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Hands the signals of this process to a launch.
///
/// A signal that this process was started to ignore stays ignored: `nohup`
/// means it.
///
/// # Errors
/// Fails if handlers or their thread cannot be made.
pub fn forward_signals(signals: &SignalSet, sender: SignalSender) -> io::Result<Forwarding> {
    let ignored = ignored_signals();
    let numbers = signals
        .signals()
        .iter()
        .map(|signal| signal.number())
        .filter(|number| !is_in(ignored, *number))
        // Ignored by whoever started this process, it would hide how ranks end.
        .chain([Signal::CHILD.as_raw()]);
    let mut incoming = Signals::new(numbers)?;
    let handle = incoming.handle();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for number in incoming.forever() {
                if let Some(signal) = StopSignal::from_number(number) {
                    sender.send(signal);
                }
            }
        })?;
    Ok(Forwarding(handle))
}

/// The set of ignored signals; bit `n - 1` is signal `n`.
fn ignored_signals() -> u64 {
    // The call that would tell is not safe; the kernel writes it here too.
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or_default()
}

fn is_in(set: u64, signal: i32) -> bool {
    u32::try_from(signal - 1)
        .ok()
        .and_then(|bit| set.checked_shr(bit))
        .is_some_and(|rest| rest & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_set() {
        assert!(is_in(1, 1) && is_in(0x4000, 15));
        assert!(!is_in(1, 2) && !is_in(u64::MAX, 65) && !is_in(u64::MAX, 0));
    }
}
