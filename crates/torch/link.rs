//! Build script shared by every crate whose tests or binaries link libtorch.
//!
//! Cargo does not pass link arguments from a dependency to its dependents, so each such crate names this file as its
//! `build` script. It writes libtorch's folder into the run path of the program, so that the program runs from any
//! folder with nothing exported; `LD_LIBRARY_PATH` still wins over it.

#![allow(
    clippy::print_stdout,
    reason = "Cargo reads instructions from a build script's output"
)]

use std::path::PathBuf;

pub(crate) fn main() {
    let libraries = libtorch_libraries();
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libraries.display());
}

/// Folder that holds `libtorch_cpu.so`, from `LIBTORCH_LIB` or `LIBTORCH` as torch-sys reads them.
pub(crate) fn libtorch_libraries() -> PathBuf {
    let root = libtorch_root("LIBTORCH_LIB");
    let libraries = root.join("lib");
    assert!(
        libraries.join("libtorch_cpu.so").exists(),
        "no libtorch in `{}`: run `scripts/setup.sh`, or set `LIBTORCH` to a folder with libtorch 2.11.0",
        root.display()
    );
    libraries
}

/// Root folder of libtorch; `special` names the variable that goes before `LIBTORCH`.
pub(crate) fn libtorch_root(special: &str) -> PathBuf {
    for name in [special, "LIBTORCH"] {
        println!("cargo:rerun-if-env-changed={name}");
        if let Some(value) = std::env::var_os(name) {
            let path = PathBuf::from(value);
            return path.canonicalize().unwrap_or(path);
        }
    }
    panic!(
        "`LIBTORCH` is not set: build inside the repository, where `.cargo/config.toml` sets it"
    );
}
