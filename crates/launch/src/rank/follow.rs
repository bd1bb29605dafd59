//! A rank ends with its launcher, even one that is killed.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal, test_kill_process};

use crate::error::Error;

/// The variable in which a launcher gives its ranks its process id.
pub(crate) const LAUNCHER_PID: &str = "ASYNCTHINK_LAUNCHER_PID";

/// In a rank, asks the kernel to kill this process when its launcher ends;
/// elsewhere does nothing. To be called first in `main`.
///
/// A launcher that is killed cannot stop its ranks, which would wait for one
/// another on their devices for good.
///
/// # Errors
/// Fails if the launcher has ended already, in which case this process must
/// end too, and if the variable or the call to the kernel is wrong.
pub fn follow_launcher() -> Result<(), Error> {
    let Some(text) = std::env::var_os(LAUNCHER_PID) else {
        return Ok(());
    };
    let launcher = text.to_str().and_then(|text| text.parse::<i32>().ok());
    let launcher = launcher
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::Variable {
            name: LAUNCHER_PID,
            reason: format!("is no process id: `{}`", text.to_string_lossy()),
        })?;
    let ended = Error::LauncherEnded {
        pid: launcher.as_raw_pid(),
    };
    if getppid() != Some(launcher) {
        // A program that a rank started inherits the variable, and ends with
        // that rank's process group.
        let is_running = test_kill_process(launcher).is_ok();
        return if is_running { Ok(()) } else { Err(ended) };
    }
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)?;
    // The launcher may have ended before the kernel was asked.
    if getppid() == Some(launcher) {
        Ok(())
    } else {
        Err(ended)
    }
}
