//! The command `launch`: this program as several ranks.

mod args;

use std::ffi::OsString;
use std::sync::Arc;

use asyncthink_launch::{
    Console, FailureReport, Inbox, LaunchIo, Machine, Outcome, Program, forward_signals, launch,
};
use clap::Parser as _;

pub(crate) use args::LaunchArgs;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::usage;

/// Runs the ranks; nothing may hold the lock on standard output.
pub(crate) fn run(args: &LaunchArgs) -> Result<(), Failure> {
    let words = std::iter::once(OsString::from("asyncthink-train")).chain(args.command.clone());
    match Cli::try_parse_from(words) {
        Ok(cli) => check(&cli.command)?,
        // Help and version are no errors.
        Err(error) if !error.use_stderr() => return usage::print_help(&error),
        // One message, and not one of every rank.
        Err(error) => return Err(wrong_command(&error)),
    }
    let program = Program {
        path: std::env::current_exe()?,
        args: args.command.clone(),
    };
    let plan = args.options().plan(&Machine::detect(), program)?;
    let inbox = Inbox::default();
    let _forwarding = forward_signals(plan.signals(), inbox.signal_sender())?;
    let console = Arc::new(Console::standard());
    let io = LaunchIo {
        console: Arc::clone(&console),
        inbox,
        listener: None,
    };
    match launch(&plan, io)? {
        // Failed writes are reported at the end, as for a command run alone.
        Outcome::Done => console
            .take_output_error()
            .map_or(Ok(()), |error| Err(error.into())),
        Outcome::Signalled(signal) => Err(Failure::signal(signal.number())),
        Outcome::Failed(report) => Err(failed(&report)),
    }
}

fn check(command: &Command) -> Result<(), Failure> {
    if matches!(command, Command::Launch(_)) {
        return Err(Failure::input("`launch` does not launch itself")
            .hint("give the ranks' command after `--`, such as `-- grpo RECIPE`"));
    }
    Ok(())
}

fn wrong_command(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // The usage that follows is that of the ranks' command.
    let message = text.lines().next().unwrap_or(text);
    Failure::input(format!("the command after `--` is wrong: {message}"))
        .hint("`asyncthink-train COMMAND --help` says what a command takes")
}

/// The first failure, which is the last thing that is said.
fn failed(report: &FailureReport) -> Failure {
    let root = &report.root;
    let mut failure = if report.is_input() {
        Failure::input(root.to_string())
    } else {
        Failure::run(root.to_string())
    };
    if let Some(message) = root.message() {
        failure = failure.cause(message);
    }
    match root.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
