//! Compiles the CUDA kernels with nvcc, and the same files as plain C++ for tests on machines without a GPU.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// The kernels.
const SOURCES: [&str; 5] = [
    "cuda/attention.cu",
    "cuda/attention_mma.cu",
    "cuda/layer.cu",
    "cuda/sampler.cu",
    "cuda/training.cu",
];

/// Files that the kernels include.
const HEADERS: [&str; 3] = ["cuda/device.cuh", "cuda/attention.cuh", "cpp/shim.h"];

/// Further sources of the emulation.
const EMULATION: [&str; 2] = ["cuda/emulation/host.cpp", "cuda/emulation/emulation.h"];

/// Ampere, Hopper, and code that drivers translate for what comes later.
const TARGETS: [&str; 2] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_90,code=[sm_90,compute_90]",
];

/// The compiler of the CUDA 13 that libtorch was made with: that of the Python wheels beside libtorch, else that of a
/// CUDA toolkit.
pub(crate) fn find(libraries: &Path) -> Option<PathBuf> {
    let toolkit =
        std::env::var_os("CUDA_HOME").map_or_else(|| "/usr/local/cuda".into(), PathBuf::from);
    let found = [
        libraries.join("../../nvidia/cu13/bin/nvcc"),
        toolkit.join("bin/nvcc"),
    ]
    .into_iter()
    .find(|nvcc| nvcc.exists())?;
    let version = Command::new(&found).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&version.stdout);
    version.contains("release 13.").then_some(found)
}

/// Compiles the kernels for GPUs; gives the objects.
pub(crate) fn kernels(nvcc: &Path, cuda_include: &Path, out: &Path) -> Vec<PathBuf> {
    watch();
    let arguments = |source: &str, object: &Path| {
        let mut command = Command::new(nvcc);
        command.args(["-std=c++17", "-O3", "-Xcompiler", "-fPIC"]);
        for target in TARGETS {
            command.args(["-gencode", target]);
        }
        command.args(["-Xfatbin", "-compress-all", "-isystem"]);
        command.arg(cuda_include);
        command.args(["-c", source, "-o"]).arg(object);
        command
    };
    let objects: Vec<PathBuf> = SOURCES
        .iter()
        .map(|source| out.join(source.replace('/', "_")).with_extension("o"))
        .collect();
    let commands = SOURCES.iter().zip(&objects);
    let commands = commands.map(|(source, object)| arguments(source, object));
    run_unless_done(commands.collect(), &[], &out.join("kernels.stamp"));
    objects
}

/// Compiles the kernels as plain C++ into a shared library.
pub(crate) fn emulation(compiler: &Path, library: &Path) {
    watch();
    for source in EMULATION {
        println!("cargo:rerun-if-changed={source}");
    }
    let mut command = Command::new(compiler);
    command
        .args(["-std=c++17", "-O2", "-fPIC", "-shared"])
        .args(["-DASYNCTHINK_EMULATION", "-w", "-x", "c++"])
        .args(SOURCES)
        .arg(EMULATION[0])
        .arg("-o")
        .arg(library);
    run_unless_done(vec![command], &EMULATION, &library.with_extension("stamp"));
}

fn watch() {
    for source in SOURCES.iter().chain(&HEADERS) {
        println!("cargo:rerun-if-changed={source}");
    }
}

/// Runs the commands at once, unless they were run before on the same files: compiling takes long, and this script runs
/// again for every change of the C++ side.
fn run_unless_done(commands: Vec<Command>, others: &[&str], stamp: &Path) {
    let mut hasher = DefaultHasher::new();
    for source in SOURCES.iter().chain(&HEADERS).chain(others) {
        std::fs::read(source)
            .expect("the sources are there")
            .hash(&mut hasher);
    }
    for command in &commands {
        format!("{command:?}").hash(&mut hasher);
    }
    let hash = hasher.finish().to_string();
    if std::fs::read_to_string(stamp).is_ok_and(|done| done == hash) {
        return;
    }
    let running: Vec<(String, Child)> = commands
        .into_iter()
        .map(|mut command| {
            let text = format!("{command:?}");
            (text, command.spawn().expect("the compiler runs"))
        })
        .collect();
    for (text, mut child) in running {
        let status = child.wait().expect("the compiler ends");
        assert!(status.success(), "compiling the kernels failed: {text}");
    }
    std::fs::write(stamp, hash).expect("the build folder can be written");
}
