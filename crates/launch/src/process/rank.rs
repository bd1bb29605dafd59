//! One rank: its process, from start to end.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::console::{Console, Stream};
use super::environment::rank_environment;
use super::logs::{LogFolder, RankFolder};
use super::pump::{Outlet, Pumps};
use crate::event::Event;
use crate::failure::Exit;
use crate::ids::{LocalRank, NodeShare};
use crate::plan::LaunchPlan;
use crate::wire::Start;

/// References that starting ranks needs.
pub(crate) struct SpawnContext<'a> {
    pub(crate) plan: &'a LaunchPlan,
    pub(crate) console: &'a Arc<Console>,
    pub(crate) logs: &'a LogFolder,
    pub(crate) events: &'a Sender<Event>,
}

#[derive(Debug)]
pub(super) struct RunningRank {
    pub(super) local_rank: LocalRank,
    /// Absent where the rank could not be started.
    pub(super) process: Option<Process>,
    pub(super) folder: Option<RankFolder>,
    pub(super) end: Option<RankEnd>,
}

#[derive(Clone, Debug)]
pub(super) struct RankEnd {
    pub(super) exit: Exit,
    pub(super) at: SystemTime,
    /// Whether it was known before the ranks were asked to end.
    pub(super) is_own: bool,
}

/// A rank's process, which leads a process group of its own.
///
/// It is reaped only at the end of the attempt: until then its id cannot name
/// another process, so that signals to the group go to nobody else.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    pid: Pid,
    is_reaped: bool,
}

impl Process {
    pub(super) fn signal(&self, signal: Signal) {
        if !self.is_reaped {
            // A group that is gone needs none.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    pub(super) fn reap(&mut self) {
        let _ = self.child.wait();
        self.is_reaped = true;
    }
}

impl RunningRank {
    pub(super) fn has_failed(&self) -> bool {
        self.end
            .as_ref()
            .is_some_and(|end| end.exit != Exit::Code(0))
    }

    pub(super) fn start(
        &mut self,
        context: &SpawnContext<'_>,
        start: &Start,
        share: &NodeShare,
        pumps: &mut Pumps,
    ) -> io::Result<()> {
        let folder = context.logs.rank(start.attempt, self.local_rank)?;
        let prefix = format!("[rank {}] ", share.rank(self.local_rank));
        let (out, err) = context.plan.output.sinks(self.local_rank);
        let (stdout, out) = Outlet::open(Stream::Out, out, folder.stdout(), &prefix)?;
        let (stderr, err) = Outlet::open(Stream::Err, err, folder.stderr(), &prefix)?;
        let mut command = self.command(context.plan, start, share, &folder.error_file());
        command.stdout(stdout).stderr(stderr);
        self.folder = Some(folder);
        let mut child = command.spawn().map_err(|error| {
            let program = context.plan.program.path.display();
            io::Error::new(error.kind(), format!("`{program}`: {error}"))
        })?;
        let streams = (child.stdout.take(), child.stderr.take());
        let pid = Pid::from_child(&child);
        // From here on the group's owner ends the process, whatever fails.
        self.process = Some(Process {
            child,
            pid,
            is_reaped: false,
        });
        if let (Some(outlet), Some(from)) = (out, streams.0) {
            pumps.start(outlet, from)?;
        }
        if let (Some(outlet), Some(from)) = (err, streams.1) {
            pumps.start(outlet, from)?;
        }
        self.watch(pid, start.attempt, context.events.clone())
    }

    fn command(
        &self,
        plan: &LaunchPlan,
        start: &Start,
        share: &NodeShare,
        error_file: &Path,
    ) -> Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(&plan.program.path);
        let is_inherited = |name: &str| std::env::var_os(name).is_some();
        command
            .args(&plan.program.args)
            .envs(rank_environment(
                plan,
                start,
                share,
                self.local_rank,
                error_file,
                is_inherited,
            ))
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Tells of the process's end, and leaves it to be reaped.
    fn watch(&self, pid: Pid, attempt: u32, events: Sender<Event>) -> io::Result<()> {
        let local_rank = self.local_rank;
        std::thread::Builder::new()
            .name("wait".to_owned())
            .spawn(move || {
                let exit = wait(pid);
                let _ = events.send(Event::Ended {
                    attempt,
                    local_rank,
                    exit,
                    at: SystemTime::now(),
                });
            })?;
        Ok(())
    }
}

/// Waits for a process's end without reaping it.
fn wait(pid: Pid) -> Exit {
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(pid), options) {
            Ok(Some(status)) => {
                if let Some(code) = status.exit_status() {
                    return Exit::Code(code);
                }
                if let Some(signal) = status.terminating_signal() {
                    return Exit::Signal(signal);
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            // The process is a child, and nobody else reaps it.
            Err(_) => return Exit::Unkillable,
        }
    }
}
