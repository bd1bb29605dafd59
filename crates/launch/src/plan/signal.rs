//! Signals that end a launch.

use std::fmt;
use std::str::FromStr;

use rustix::process::Signal;

use crate::error::Error;

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

    /// Signal that the ranks get in its place.
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

impl SignalSet {
    pub(crate) fn signals(&self) -> &[StopSignal] {
        &self.0
    }
}

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
}
