//! Launchers and ranks as processes of their own: this test program, which
//! runs one of its helpers.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use asyncthink_launch::{
    Console, Inbox, LaunchIo, Machine, Outcome, Program, follow_launcher, forward_signals, launch,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Folder, Setup, has_ended, wait_until};

/// The folder that a helper works in; without it, helpers do nothing.
const FOLDER: &str = "LAUNCH_TEST_FOLDER";

/// Runs a helper of this test program.
fn helper(name: &str) -> Program {
    let name = format!("processes::{name}");
    let args = ["--exact", name.as_str(), "--nocapture", "--test-threads=1"];
    Program {
        path: std::env::current_exe().expect("a path"),
        args: args.map(Into::into).into(),
    }
}

fn command(program: &Program, folder: &Folder) -> Command {
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env(FOLDER, folder.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// A launcher of two ranks that wait, and the ids of their processes.
fn launcher(folder: &Folder) -> (Child, Vec<String>) {
    let launcher = command(&helper("a_launcher"), folder)
        .spawn()
        .expect("a process");
    let ids = ["0", "1"].map(|rank| {
        folder.wait_for(rank);
        folder.read(rank)
    });
    (launcher, ids.into())
}

/// A helper: a launcher that ends with the exit code of its outcome.
#[test]
#[expect(clippy::exit, reason = "this process is a launcher and no test")]
fn a_launcher() {
    if std::env::var_os(FOLDER).is_none() {
        return;
    }
    let setup = Setup::of(2, helper("a_rank"));
    let plan = setup.options.plan(&Machine::detect(), helper("a_rank"));
    let plan = plan.expect("fits");
    let inbox = Inbox::default();
    let _forwarding = forward_signals(plan.signals(), inbox.signal_sender()).expect("handlers");
    let io = LaunchIo {
        console: Console::standard().into(),
        inbox,
        listener: None,
    };
    let code = match launch(&plan, io) {
        Ok(Outcome::Signalled(signal)) => 128 + signal.number(),
        _ => 1,
    };
    std::process::exit(code);
}

/// A helper: a rank that waits.
#[test]
fn a_rank() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    if let Err(error) = follow_launcher() {
        std::fs::write(folder.join("error"), error.to_string()).expect("a file");
        return;
    }
    let Ok(rank) = std::env::var("RANK") else {
        std::fs::write(folder.join("done"), "").expect("a file");
        return;
    };
    let id = folder.join("id").with_extension(&rank);
    std::fs::write(&id, std::process::id().to_string()).expect("a file");
    // The file appears with its content.
    std::fs::rename(id, folder.join(rank)).expect("a file");
    loop {
        std::thread::park();
    }
}

#[test]
fn ranks_end_with_a_launcher_that_is_killed() {
    let folder = Folder::new();
    let (mut launcher, ids) = launcher(&folder);
    launcher.kill().expect("killed");
    launcher.wait().expect("ended");
    for id in ids {
        wait_until(|| has_ended(&id));
    }
}

#[test]
fn a_signal_to_the_launcher_ends_all_with_its_exit_code() {
    let folder = Folder::new();
    let (mut launcher, ids) = launcher(&folder);
    let pid = Pid::from_child(&launcher);
    kill_process(pid, Signal::TERM).expect("signalled");
    let status = launcher.wait().expect("ended");
    assert_eq!(status.code(), Some(143));
    assert!(ids.iter().all(|id| has_ended(id)));
}

#[test]
fn a_rank_without_its_launcher_ends() {
    let mut gone = Command::new("/bin/true").spawn().expect("a process");
    gone.wait().expect("ended");
    let folder = Folder::new();
    let status = command(&helper("a_rank"), &folder)
        .env("ASYNCTHINK_LAUNCHER_PID", gone.id().to_string())
        .status();
    assert!(status.expect("ended").success());
    let error = folder.read("error");
    assert!(error.ends_with("has ended"), "{error}");

    let folder = Folder::new();
    let status = command(&helper("a_rank"), &folder)
        .env("ASYNCTHINK_LAUNCHER_PID", "-1")
        .status();
    assert!(status.expect("ended").success());
    assert!(folder.read("error").contains("`-1`"));
}

#[test]
fn a_program_of_a_rank_is_no_rank() {
    let folder = Folder::new();
    let rank = helper("a_rank");
    // Between this process, the launcher, and the program stands a shell.
    let mut between = Command::new("/bin/sh");
    between
        .args(["-c", "\"$@\"; exit $?", "sh"])
        .arg(&rank.path)
        .args(&rank.args)
        .env(FOLDER, folder.path(""))
        .env("ASYNCTHINK_LAUNCHER_PID", std::process::id().to_string())
        .stdout(Stdio::null());
    assert!(between.status().expect("ended").success());
    assert!(folder.path("done").exists());
}
