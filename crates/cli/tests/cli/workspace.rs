//! Running the built program in a folder of its own.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// A recipe small enough for a test: seconds for the whole pipeline.
const RECIPE: &str = include_str!("tiny.toml");

/// A folder with the recipe `tiny.toml` in it.
pub(crate) struct Workspace {
    folder: TempDir,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        Self::with_recipe(RECIPE)
    }

    pub(crate) fn with_recipe(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("tiny.toml"), text).expect("a file");
        Self { folder }
    }

    /// The tiny recipe with one piece of text replaced.
    pub(crate) fn changed(from: &str, to: &str) -> Self {
        assert!(RECIPE.contains(from), "{from}");
        Self::with_recipe(&RECIPE.replacen(from, to, 1))
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asyncthink-train"));
        command
            .args(args)
            .current_dir(self.path())
            .env("COLUMNS", "100")
            .env_remove("RUST_BACKTRACE");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }

    /// Runs and expects success.
    pub(crate) fn done(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}\n{}", self.show(&output));
        output
    }

    pub(crate) fn with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.spawn(args);
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input).expect("the program reads");
        drop(stdin);
        child.wait_with_output().expect("the program ends")
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts")
    }

    /// Exit code and both streams, without what differs between machines.
    pub(crate) fn show(&self, output: &Output) -> String {
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
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}
