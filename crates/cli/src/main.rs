//! The command `asyncthink-train`: arguments, error rendering, progress.
//!
//! Everything that this program can do is a library; here is only what stands
//! between a library and a person at a terminal. Data goes to standard
//! output, everything else to standard error.

mod args;
mod bench;
mod cache_report;
mod catalogue;
mod doctor;
mod evaluate;
mod failure;
mod faults;
mod grade;
mod launch;
mod lines;
mod memory_report;
mod preflight;
mod progress;
mod run_folder;
mod score;
mod signals;
mod stages;
mod synth;
mod think;
mod trace;
mod usage;

use std::io::Write;
use std::process::ExitCode;

use asyncthink_recipe::Stage;
use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    if let Err(error) = asyncthink_launch::follow_launcher() {
        let _ = std::io::stderr().write_all(Failure::from(error).render().as_bytes());
        return ExitCode::FAILURE;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::print(&error),
    };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&cli.command))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            let text = failure.render();
            if !text.is_empty() {
                let message = text.strip_prefix("error: ").unwrap_or(&text);
                asyncthink_launch::report_failure(
                    &message.replace("\n\n", "\n"),
                    failure.exit_code(),
                );
            }
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::from(failure.exit_code())
        }
        // The hook has reported it.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(command: &Command) -> Result<(), Failure> {
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    match command {
        Command::Launch(args) => {
            // The ranks' output takes the lock of standard output.
            drop(out);
            return launch::run(args);
        }
        Command::Think(args) => think::run(args, &mut out)?,
        Command::Trace(args) => trace::run(args, &mut out)?,
        Command::Grade(args) => grade::run(args, &mut out)?,
        Command::Score(args) => score::run(args, &mut out)?,
        Command::Schema => writeln!(
            out,
            "{}",
            asyncthink_recipe::schema(&catalogue::catalogue())
        )?,
        Command::Completions(args) => {
            let mut script = Vec::new();
            let mut command = Cli::command();
            clap_complete::generate(args.shell, &mut command, "asyncthink-train", &mut script);
            out.write_all(&script)?;
        }
        Command::Bench(args) => bench::run(args, &mut out)?,
        Command::Doctor(args) => doctor::run(args, &mut out)?,
        Command::Synth(args) => stages::run(Stage::Synth, args, &mut out)?,
        Command::Sft(args) => stages::run(Stage::Sft, args, &mut out)?,
        Command::Grpo(args) => stages::run(Stage::Grpo, args, &mut out)?,
        Command::Eval(args) => stages::run(Stage::Eval, args, &mut out)?,
    }
    out.flush()?;
    Ok(())
}

/// A panic is a mistake in this program: the user gets a line to report and no
/// backtrace.
fn report_panic(info: &std::panic::PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("unknown");
    let place = info.location().map_or_else(String::new, |location| {
        format!(" ({}:{})", location.file(), location.line())
    });
    asyncthink_launch::report_failure(&format!("internal error{place}: {message}"), 1);
    let _ = writeln!(
        std::io::stderr(),
        "error: internal error{place}: {message}\n\nhint: this is a bug in asyncthink-train {}; please report it with \
         this line and the recipe",
        env!("CARGO_PKG_VERSION")
    );
}
