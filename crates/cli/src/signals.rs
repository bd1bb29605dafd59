//! SIGINT and SIGTERM: the first asks the run to save and stop, the second
//! ends the program at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use asyncthink_trainer::StopFlag;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::Failure;

/// Registers the handlers and gives the flag that they raise.
pub(crate) fn stop_flag() -> Result<StopFlag, Failure> {
    let stop = StopFlag::default();
    let is_stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let number = usize::try_from(signal).unwrap_or_default();
        // Handlers run in this order: the shutdown sees the flag only from the
        // second signal on.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&is_stopping))?;
        flag::register(signal, Arc::clone(&is_stopping))?;
        flag::register_usize(signal, stop.cell(), number)?;
    }
    Ok(stop)
}

/// The name of a signal that a run can be stopped by.
pub(crate) fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        SIGTERM => "SIGTERM",
        _ => "a signal",
    }
}
