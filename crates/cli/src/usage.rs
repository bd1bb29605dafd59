//! Help, the version, and wrong arguments.

use std::io::Write as _;
use std::process::ExitCode;

use crate::failure::Failure;

/// Prints help, the version, or what is wrong with the arguments; clap knows which it is.
pub(crate) fn print(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        let _ = error.print();
    } else if let Err(failure) = print_help(error) {
        let _ = std::io::stderr().write_all(failure.render().as_bytes());
        return ExitCode::from(failure.exit_code());
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Prints help or the version to standard output, as any other output.
pub(crate) fn print_help(help: &clap::Error) -> Result<(), Failure> {
    help.print()?;
    Ok(std::io::stdout().flush()?)
}
