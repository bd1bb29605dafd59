//! A folder in which a test runs the program.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::program;
use crate::tiny::{EVAL, TINY};

/// A temporary folder with a recipe `tiny.toml` in it.
#[derive(Debug)]
pub struct Workspace {
    folder: TempDir,
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::missing_panics_doc, reason = "a panic is a failed test")]
impl Workspace {
    /// Makes a folder with the recipe of the tests, evaluation included.
    pub fn new() -> Self {
        Self::with_recipe(&Self::recipe())
    }

    /// Makes a folder with another recipe.
    pub fn with_recipe(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("tiny.toml"), text).expect("a file");
        Self { folder }
    }

    /// Makes a folder with the recipe of the tests, in which one piece of text is replaced.
    pub fn changed(from: &str, to: &str) -> Self {
        let recipe = Self::recipe();
        assert!(recipe.contains(from), "{from}");
        Self::with_recipe(&recipe.replacen(from, to, 1))
    }

    fn recipe() -> String {
        format!("{TINY}{EVAL}")
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Command that runs the program in the folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(self.path())
            .env("COLUMNS", "100")
            .env_remove("RUST_BACKTRACE");
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }

    /// Runs the program and expects success.
    pub fn done(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}\n{}", self.show(&output));
        output
    }

    /// Runs a command that must fail with exit code 2, nothing on standard output, and a hint; returns the text shown.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let shown = self.show(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(output.stdout.is_empty(), "{shown}");
        assert!(
            shown.contains("error: ") && shown.contains("\nhint: "),
            "{shown}"
        );
        shown
    }

    /// Runs the program with bytes on standard input.
    pub fn with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.spawn(args);
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input).expect("the program reads");
        drop(stdin);
        child.wait_with_output().expect("the program ends")
    }

    /// Starts the program with a pipe on each stream.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts")
    }

    /// Shows exit code and both streams, without text that differs between machines.
    pub fn show(&self, output: &Output) -> String {
        let clean = |bytes: &[u8]| {
            let real = self.path().canonicalize().expect("a folder");
            String::from_utf8_lossy(bytes)
                .replace(&real.display().to_string(), "[FOLDER]")
                .replace(&self.path().display().to_string(), "[FOLDER]")
        };
        format!(
            "exit code: {:?}\n--- stdout\n{}--- stderr\n{}",
            output.status.code(),
            clean(&output.stdout),
            clean(&output.stderr)
        )
    }
}

/// Standard output as text.
///
/// # Panics
/// Panics if it is not UTF-8.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}
