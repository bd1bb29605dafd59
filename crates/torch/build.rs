//! Compiles the C++ side against the headers of libtorch, and the CUDA side into a library of its own.

#[path = "link.rs"]
mod link;

use std::path::{Path, PathBuf};

/// C++ that is linked into every program.
const SOURCES: [&str; 4] = [
    "cpp/allocator.cpp",
    "cpp/training.cpp",
    "cpp/decode_attention.cpp",
    "cpp/memory_file.cpp",
];

fn main() {
    link::main();
    let libraries = link::libtorch_libraries();
    let include = link::libtorch_root("LIBTORCH_INCLUDE").join("include");
    println!("cargo:rustc-link-search=native={}", libraries.display());
    for source in SOURCES.iter().chain(&["cpp/shim.h", "cpp/cuda_memory.cpp"]) {
        println!("cargo:rerun-if-changed={source}");
    }

    compiler(&include)
        .files(SOURCES)
        .compile("asyncthink_torch");
    for library in ["torch_cpu", "c10", "gomp"] {
        println!("cargo:rustc-link-lib={library}");
    }
    build_cuda_library(&libraries, &include);
}

/// Settings of every C++ file: the language and ABI of the official libtorch builds, full optimisation in every
/// profile because the tests run these kernels too.
fn compiler(include: &Path) -> cc::Build {
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .pic(true)
        .std("c++17")
        .opt_level(3)
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .flag("-fopenmp")
        .flag("-fno-math-errno")
        .flag("-isystem")
        .flag(include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"));
    build
}

/// Builds `libasyncthink_cuda.so`, which the program carries as bytes and opens only after `libtorch_cuda.so`.
///
/// It needs the CUDA headers but neither a GPU nor a driver. A libtorch without CUDA, or without the headers, gives
/// an empty file: such a program runs on the CPU and reports no CUDA memory.
fn build_cuda_library(libraries: &Path, include: &Path) {
    let output = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets `OUT_DIR`"))
        .join("libasyncthink_cuda.so");
    println!(
        "cargo:rustc-env=ASYNCTHINK_CUDA_LIBRARY={}",
        output.display()
    );
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let cuda_headers = cuda_headers(libraries);
    let Some(cuda_headers) = cuda_headers.filter(|_| libraries.join("libc10_cuda.so").exists())
    else {
        if libraries.join("libc10_cuda.so").exists() {
            println!("cargo:warning=no CUDA headers found: memory statistics of GPUs are left out");
        }
        std::fs::write(&output, []).expect("the build folder can be written");
        return;
    };
    let mut command = compiler(include).get_compiler().to_command();
    command
        .arg("-isystem")
        .arg(cuda_headers)
        .args(["-shared", "cpp/cuda_memory.cpp", "-o"])
        .arg(&output)
        .arg("-L")
        .arg(libraries)
        .args(["-lc10_cuda", "-lc10", "-Wl,--allow-shlib-undefined"]);
    let status = command.status().expect("the C++ compiler runs");
    assert!(status.success(), "compiling `cpp/cuda_memory.cpp` failed");
}

/// Folder with the headers of the CUDA run time: that of the Python wheels beside libtorch, else that of a CUDA toolkit.
fn cuda_headers(libraries: &Path) -> Option<PathBuf> {
    let toolkit =
        std::env::var_os("CUDA_HOME").map_or_else(|| "/usr/local/cuda".into(), PathBuf::from);
    [
        libraries.join("../../nvidia/cu13/include"),
        toolkit.join("include"),
    ]
    .into_iter()
    .find(|folder| {
        // The compiler's own headers come in a package of their own, `nvidia-cuda-crt`.
        ["cuda_runtime_api.h", "crt/host_config.h"]
            .iter()
            .all(|header| folder.join(header).exists())
    })
}
