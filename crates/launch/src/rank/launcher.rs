//! Which launch a rank belongs to.

use std::ffi::OsStr;

use rustix::process::{Pid, getppid};

use super::follow::LAUNCHER_PID;
use crate::plan::host_name;

/// The folder of an attempt's logs, after that of the launch.
const ATTEMPT: &str = "/attempt_";

/// Identity of the launcher that started this process, the same in all its attempts and unlike that of any other launch.
///
/// That is the folder which torchrun makes for the error files of a launch, and else the parent process with the time of
/// its start. Each node's launcher has an identity of its own. What it says of a process that no launcher started, such as
/// one that a shell did, is not an identity of a launch.
pub(super) fn launcher_identity(error_file: Option<&OsStr>) -> String {
    let host = host_name();
    let own = std::env::var(LAUNCHER_PID).ok();
    let own = own.and_then(|pid| pid.parse().ok());
    if own.is_none()
        && let Some(file) = error_file.and_then(OsStr::to_str)
        && let Some((folder, _)) = file.rsplit_once(ATTEMPT)
    {
        return format!("{host} {folder}");
    }
    let pid = own.unwrap_or_else(|| getppid().map_or(0, Pid::as_raw_pid));
    format!("{host} {pid} {}", start_of(pid).unwrap_or_default())
}

/// When a process started, in ticks since the machine did.
fn start_of(pid: i32) -> Option<String> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().nth(19)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_of_a_launch_share_an_identity_and_launches_do_not() {
        let of = |file: &str| launcher_identity(Some(OsStr::new(file)));
        let first = of("/tmp/torchelastic_x/none_a1/attempt_0/0/error.json");
        assert_eq!(
            first,
            of("/tmp/torchelastic_x/none_a1/attempt_1/3/error.json")
        );
        assert_ne!(
            first,
            of("/tmp/torchelastic_x/none_b2/attempt_0/0/error.json")
        );
        let parent = launcher_identity(None);
        assert_eq!(parent, of("/tmp/error.json"));
        assert_eq!(parent.split(' ').count(), 3, "{parent}");
        assert!(start_of(std::process::id().cast_signed()).is_some());
    }
}
