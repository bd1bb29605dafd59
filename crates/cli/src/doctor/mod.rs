//! The command `doctor`: what this machine offers, and with `--self-test` whether it computes right.

mod check;
mod decoding;
mod ranks;
mod self_test;
mod stages;

use std::io::Write;

use asyncthink_torch::{DeviceSpec, memory_use, open_device, why_not_cuda};

use crate::args::DoctorArgs;
use crate::failure::Failure;

pub(crate) fn run(args: &DoctorArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if args.self_test {
        return self_test::run(&args.device, args.json, out);
    }
    // CUDA is there for good or not at all after the first use of libtorch,
    // so the device comes first.
    let device = open_device(&DeviceSpec::Auto)?;
    let memory = memory_use(device).map_or_else(
        || "unknown".to_owned(),
        |memory| format!("{:.0} MiB in use", memory.current_bytes as f64 / MIB),
    );
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let rows = [
        ("asyncthink-train", env!("CARGO_PKG_VERSION").to_owned()),
        (
            "libtorch",
            libtorch().unwrap_or_else(|| "not found".to_owned()),
        ),
        ("device `auto`", format!("{device:?}")),
        ("memory of the device", memory),
        ("cores", cores.to_string()),
        (
            "threads of libtorch",
            asyncthink_torch::num_threads().to_string(),
        ),
        ("vector instructions", vector_instructions().to_owned()),
        (
            "memory of the machine",
            machine_memory().unwrap_or_else(|| "unknown".to_owned()),
        ),
    ];
    for (name, value) in rows {
        writeln!(out, "{name:24}{value}")?;
    }
    if let Some(reason) = why_not_cuda() {
        writeln!(
            out,
            "\nA GPU driver is present and CUDA is not used: {reason}"
        )?;
    }
    Ok(())
}

const MIB: f64 = 1024.0 * 1024.0;

/// The file that libtorch was loaded from.
fn libtorch() -> Option<String> {
    let maps = fs_err::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("libtorch_cpu.so"))
        .map(str::to_owned)
}

fn machine_memory() -> Option<String> {
    let info = fs_err::read_to_string("/proc/meminfo").ok()?;
    let kib: f64 = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    Some(format!("{:.1} GiB", kib / MIB))
}

/// The widest that the CPU kernels can use.
#[cfg(target_arch = "x86_64")]
fn vector_instructions() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") {
        "AVX-512"
    } else if std::arch::is_x86_feature_detected!("avx2") {
        "AVX2"
    } else {
        "SSE2"
    }
}

/// The widest that the CPU kernels can use.
#[cfg(not(target_arch = "x86_64"))]
fn vector_instructions() -> &'static str {
    "those of the platform"
}
