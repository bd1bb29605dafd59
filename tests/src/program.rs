//! The program under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Path of `asyncthink-train`, which the first call in a process builds with the profile of the tests.
///
/// # Panics
/// Panics if the program cannot be built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

fn build() -> PathBuf {
    // The test program is `TARGET/PROFILE/deps/NAME-HASH`.
    let test = std::env::current_exe().expect("the path of the test program");
    let folder = test.ancestors().nth(2).expect("the profile's folder");
    let target = folder.parent().expect("the target folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("no profile in `{}`", test.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--locked", "--quiet", "--profile", profile])
        // This package selects the features of dependencies, see its `Cargo.toml`.
        .args([
            "--package",
            "asyncthink-cli",
            "--package",
            env!("CARGO_PKG_NAME"),
        ])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the program cannot be built");
    folder.join("asyncthink-train")
}
