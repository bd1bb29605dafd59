//! The signals that a launcher passes on to its ranks.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::mpsc::Sender;

use rustix::process::Signal;
use signal_hook::iterator::{Handle, Signals};

use crate::error::Error;
use crate::node::Event;

/// A signal that ends a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// `SIGTERM`.
    Term,
    /// `SIGINT`; the only one that reaches the ranks as it is.
    Int,
    /// `SIGHUP`.
    Hup,
    /// `SIGQUIT`.
    Quit,
    /// `SIGUSR1`, which some cluster managers send ahead of the end.
    Usr1,
    /// `SIGUSR2`, likewise.
    Usr2,
}

impl StopSignal {
    const ALL: [Self; 6] = [
        Self::Term,
        Self::Int,
        Self::Hup,
        Self::Quit,
        Self::Usr1,
        Self::Usr2,
    ];

    fn raw(self) -> Signal {
        match self {
            Self::Term => Signal::TERM,
            Self::Int => Signal::INT,
            Self::Hup => Signal::HUP,
            Self::Quit => Signal::QUIT,
            Self::Usr1 => Signal::USR1,
            Self::Usr2 => Signal::USR2,
        }
    }

    /// The signal's number on this platform.
    pub fn number(self) -> i32 {
        self.raw().as_raw()
    }

    /// The signal's name, such as `SIGTERM`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
            Self::Hup => "SIGHUP",
            Self::Quit => "SIGQUIT",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
        }
    }

    pub(crate) fn from_number(number: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|signal| signal.number() == number)
    }

    /// What the ranks get in its place.
    pub(crate) fn for_ranks(self) -> Signal {
        match self {
            Self::Int => Signal::INT,
            _ => Signal::TERM,
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The value of `--signals-to-handle`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalSet(Vec<StopSignal>);

impl Default for SignalSet {
    fn default() -> Self {
        use StopSignal as S;
        Self(vec![S::Term, S::Int, S::Hup, S::Quit])
    }
}

impl FromStr for SignalSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let named = |name: &str| {
            let mut all = StopSignal::ALL.into_iter();
            all.find(|signal| signal.name() == name.trim())
        };
        let mut signals = Vec::new();
        for name in text.split(',') {
            let signal = named(name).ok_or(Error::SignalSet)?;
            if !signals.contains(&signal) {
                signals.push(signal);
            }
        }
        Ok(Self(signals))
    }
}

/// Tells a launch of signals, whoever they come from.
#[derive(Clone, Debug)]
pub struct SignalSender(pub(crate) Sender<Event>);

impl SignalSender {
    /// Has the effect of the signal on the launch; none after its end.
    pub fn send(&self, signal: StopSignal) {
        let _ = self.0.send(Event::Signal(signal));
    }
}

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
        .0
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
    fn names_are_read_and_told_once() {
        let set: SignalSet = "SIGUSR1,SIGINT,SIGUSR1".parse().expect("names");
        assert_eq!(set.0, [StopSignal::Usr1, StopSignal::Int]);
        let default: SignalSet = "SIGTERM,SIGINT,SIGHUP,SIGQUIT".parse().expect("names");
        assert_eq!(default, SignalSet::default());
        for wrong in ["", "TERM", "SIGKILL", "SIGTERM,", "15"] {
            assert!(wrong.parse::<SignalSet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_an_interrupt_reaches_the_ranks_as_it_is() {
        for signal in StopSignal::ALL {
            assert_eq!(StopSignal::from_number(signal.number()), Some(signal));
            let is_same = signal.for_ranks() == signal.raw();
            assert_eq!(
                is_same,
                matches!(signal, StopSignal::Int | StopSignal::Term)
            );
        }
        assert_eq!(StopSignal::from_number(9), None);
    }

    #[test]
    fn bits_of_a_set() {
        assert!(is_in(1, 1) && is_in(0x4000, 15));
        assert!(!is_in(1, 2) && !is_in(u64::MAX, 65) && !is_in(u64::MAX, 0));
    }
}
