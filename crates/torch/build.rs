//! Compiles the C++ side against the headers of libtorch, and the CUDA side into a library of its own.

#[path = "link.rs"]
mod link;
#[path = "nvcc.rs"]
mod nvcc;

use std::path::{Path, PathBuf};

/// C++ that is linked into every program.
const SOURCES: [&str; 19] = [
    "cpp/cpu_decoder/choose.cpp",
    "cpp/cpu_decoder/decoder.cpp",
    "cpp/cpu_decoder/ffi.cpp",
    "cpp/cpu_decoder/memory.cpp",
    "cpp/cpu_decoder/sampling.cpp",
    "cpp/cpu_decoder/team.cpp",
    "cpp/allocator.cpp",
    "cpp/cpu_training/choose.cpp",
    "cpp/number_formats.cpp",
    "cpp/training/attention.cpp",
    "cpp/training/ends.cpp",
    "cpp/training/flash.cpp",
    "cpp/training/layer.cpp",
    "cpp/training/optimizer.cpp",
    "cpp/training/row_kernels.cpp",
    "cpp/training/rows.cpp",
    "cpp/memory_file.cpp",
    "cpp/store.cpp",
    "cpp/collectives.cpp",
];

const AVX2: &[&str] = &["-mavx2", "-mfma"];
const AVX512: &[&str] = &[
    "-mavx2",
    "-mfma",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
];

/// CPU kernels: a file for each instruction set, with its flags and the level of optimisation. (The generic ones are
/// loops over arrays, which the third level unrolls for most of a minute.)
const KERNELS: [(&str, &[&[&str]], u32); 9] = [
    ("cpu_decoder/kernels_generic", &[], 2),
    ("cpu_decoder/kernels_tiles_emulated", &[], 2),
    ("cpu_training/kernels_generic", &[], 2),
    ("cpu_decoder/kernels_avx2", &[AVX2], 3),
    ("cpu_training/kernels_avx2", &[AVX2], 3),
    ("cpu_decoder/kernels_avx512", &[AVX512], 3),
    ("cpu_training/kernels_avx512", &[AVX512], 3),
    (
        "cpu_decoder/kernels_avx512_bf16",
        &[AVX512, &["-mavx512bf16"]],
        3,
    ),
    (
        "cpu_decoder/kernels_amx",
        &[AVX512, &["-mavx512bf16", "-mamx-tile", "-mamx-bf16"]],
        3,
    ),
];

/// Kernels that every architecture compiles.
const PORTABLE_KERNELS: usize = 3;

/// What else makes the C++ side; folders count with all that is in them.
const OTHER_SOURCES: [&str; 11] = [
    "cpp/cpu_decoder",
    "cpp/cpu_training",
    "cpp/training",
    "cpp/shim.h",
    "cpp/collectives.h",
    "cpp/cuda_memory.cpp",
    "cpp/collectives_cuda.cpp",
    "cpp/cuda_stream.cpp",
    "cpp/cuda_graph.cpp",
    "cpp/gloo_headers",
    "cpp/cuda_headers",
];

fn main() {
    link::main();
    let libraries = link::libtorch_libraries();
    let include = link::libtorch_root("LIBTORCH_INCLUDE").join("include");
    println!("cargo:rustc-link-search=native={}", libraries.display());
    for source in SOURCES.iter().chain(&OTHER_SOURCES) {
        println!("cargo:rerun-if-changed={source}");
    }

    compiler(&include)
        // The wheel has gloo's code and not its headers; ours declare what c10d's header names.
        .define("USE_C10D_GLOO", None)
        .flag("-isystem")
        .flag("cpp/gloo_headers")
        .files(SOURCES)
        .objects(cpu_kernels(&include))
        .compile("asyncthink_torch");
    for library in ["torch_cpu", "c10", "gomp"] {
        println!("cargo:rustc-link-lib={library}");
    }
    build_cuda_libraries(&libraries, &include);
    build_emulation(&include);
}

/// Builds the CUDA kernels for the CPU, where tests need them: an empty file in release builds.
fn build_emulation(include: &Path) {
    let library = library_path("emulation");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        std::fs::write(&library, []).expect("the build folder can be written");
    } else {
        nvcc::emulation(compiler(include).get_compiler().path(), &library);
    }
}

/// Compiles the CPU kernels and gives their object files.
fn cpu_kernels(include: &Path) -> Vec<PathBuf> {
    let is_x86_64 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let num_kernels = if is_x86_64 {
        KERNELS.len()
    } else {
        PORTABLE_KERNELS
    };
    let compile = |&(path, flags, opt_level): &(&str, &[&[&str]], u32)| {
        let mut build = compiler(include);
        build
            .opt_level(opt_level)
            .flags(flags.iter().copied().flatten())
            // GCC takes its own intrinsics' undefined registers for mistakes.
            .flag_if_supported("-Wno-maybe-uninitialized")
            .flag_if_supported("-Wno-uninitialized")
            .file(format!("cpp/{path}.cpp"));
        build.compile_intermediates()
    };
    KERNELS[..num_kernels].iter().flat_map(compile).collect()
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

/// Builds `libasyncthink_cuda.so` and the like, which the program carries as bytes and opens only after
/// `libtorch_cuda.so`. Several, because some need less to be built or opened than others.
///
/// They need the CUDA headers but neither a GPU nor a driver. A libtorch without CUDA, or without the headers, gives
/// empty files: such a program runs on the CPU, reports no CUDA memory, and has no collectives between GPUs.
fn build_cuda_libraries(libraries: &Path, include: &Path) {
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let has_cuda = libraries.join("libtorch_cuda.so").exists();
    let cuda = cuda_headers(libraries).filter(|_| has_cuda);
    let nccl = cuda.as_ref().and_then(|cuda| nccl_headers(libraries, cuda));
    if has_cuda && cuda.is_none() {
        println!("cargo:warning=no CUDA headers found: memory statistics of GPUs are left out");
    }
    if has_cuda && nccl.is_none() {
        println!(
            "cargo:warning=no NCCL headers found: collectives between GPUs are left out; `scripts/setup.sh` fetches them"
        );
    }
    build_library(
        "cuda",
        "cpp/cuda_memory.cpp",
        &[],
        cuda.clone().map(|folder| vec![folder]),
        &["c10_cuda", "c10"],
        (libraries, include),
    );
    let nvcc = cuda.as_ref().and_then(|_| nvcc::find(libraries));
    if cuda.is_some() && nvcc.is_none() {
        println!(
            "cargo:warning=no nvcc of CUDA 13 found: the CUDA kernels are left out; `scripts/setup.sh` fetches it"
        );
    }
    let objects = match (&cuda, &nvcc) {
        (Some(cuda), Some(nvcc)) => nvcc::kernels(nvcc, cuda, &out_folder()),
        _ => Vec::new(),
    };
    build_library(
        "kernels",
        "cpp/cuda_stream.cpp",
        &objects,
        cuda.clone()
            .filter(|_| nvcc.is_some())
            .map(|folder| vec![folder]),
        &["c10_cuda", "c10"],
        (libraries, include),
    );
    build_library(
        "graph",
        "cpp/cuda_graph.cpp",
        &[],
        cuda.map(|folder| vec![folder]),
        &["torch_cuda", "c10_cuda", "torch_cpu", "c10"],
        (libraries, include),
    );
    build_library(
        "nccl",
        "cpp/collectives_cuda.cpp",
        &[],
        nccl,
        &["torch_cuda", "c10_cuda", "torch_cpu", "c10"],
        (libraries, include),
    );
}

fn out_folder() -> PathBuf {
    PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets `OUT_DIR`"))
}

/// Where a shared library is built; tells it in `ASYNCTHINK_(NAME)_LIBRARY`.
fn library_path(name: &str) -> PathBuf {
    let output = out_folder().join(format!("libasyncthink_{name}.so"));
    println!(
        "cargo:rustc-env=ASYNCTHINK_{}_LIBRARY={}",
        name.to_uppercase(),
        output.display()
    );
    output
}

/// Builds one shared library, empty if it has no `headers`, of a source and objects that are there.
fn build_library(
    name: &str,
    source: &str,
    objects: &[PathBuf],
    headers: Option<Vec<PathBuf>>,
    linked: &[&str],
    (libraries, include): (&Path, &Path),
) {
    let output = library_path(name);
    let Some(headers) = headers else {
        std::fs::write(&output, []).expect("the build folder can be written");
        return;
    };
    let mut command = compiler(include).get_compiler().to_command();
    for folder in headers {
        command.arg("-isystem").arg(folder);
    }
    command
        .arg("-DUSE_C10D_NCCL")
        // After all others: stands in for headers of large packages of which only names are needed.
        .args(["-idirafter", "cpp/cuda_headers"])
        .args(["-shared", source])
        .args(objects)
        .arg("-o")
        .arg(&output)
        .arg("-L")
        .arg(libraries)
        .args(linked.iter().map(|library| format!("-l{library}")))
        .arg("-Wl,--allow-shlib-undefined");
    let status = command.status().expect("the C++ compiler runs");
    assert!(status.success(), "compiling `{source}` failed");
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

/// Folders with the headers of NCCL, and of what those and libtorch's include beside those of the CUDA run time.
fn nccl_headers(libraries: &Path, cuda: &Path) -> Option<Vec<PathBuf>> {
    let nccl = [
        libraries.join("../../nvidia/nccl/include"),
        cuda.to_owned(),
        "/usr/include".into(),
    ]
    .into_iter()
    .find(|folder| folder.join("nccl.h").exists())?;
    // `nv/target`: the Python wheel has it in both places, a CUDA toolkit in the second.
    let target = [cuda.to_owned(), cuda.join("cccl")]
        .into_iter()
        .find(|folder| folder.join("nv/target").exists())?;
    let mut folders = vec![cuda.to_owned(), target, nccl];
    // Of `/usr/include` the compiler knows, and its place in the order matters.
    folders.retain(|folder| folder != Path::new("/usr/include"));
    Some(folders)
}
