//! The machine: its name, and the rates that it reaches at best.

use asyncthink_recipe::Recipe;
use asyncthink_torch::{
    DeviceSpec, matmul_flops_per_sec_of, num_threads, open_device, read_bytes_per_sec,
    set_num_threads, set_operation_threads, thread_budget,
};
use serde::Serialize;
use tch::{Device, Kind};

use crate::failure::Failure;

/// Instruction sets that kernels choose by, as the kernel names them.
const FLAGS: [&str; 5] = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"];

/// Where a benchmark ran.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: Option<String>,
    cpu_flags: Vec<&'static str>,
    cores: usize,
    threads: usize,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let info = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |key: &str| {
            let line = info.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim())
        };
        let flags: Vec<&str> = value("flags").unwrap_or_default().split(' ').collect();
        Self {
            cpu: value("model name").map(str::to_owned),
            cpu_flags: FLAGS
                .into_iter()
                .filter(|flag| flags.contains(flag))
                .collect(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            threads: num_threads(),
        }
    }
}

/// Opens the recipe's device with the recipe's number of threads.
pub(crate) fn open(recipe: &Recipe) -> Result<Device, Failure> {
    let device = open_device(&recipe.device.to_string().parse::<DeviceSpec>()?)?;
    set_num_threads(recipe.num_threads)?;
    Ok(device)
}

/// Waits until a GPU has done what it was given, so that a clock sees it.
pub(crate) fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(i64::try_from(index).unwrap_or(0));
    }
}

/// Name of a number type.
pub(crate) fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        _ => "f32",
    }
}

/// Name of a device, as recipes have it.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// The best rates of a device.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ceilings {
    /// Matrix product in f32.
    matmul_f32_tflops: f64,
    /// Matrix product in bf16, where the model is.
    matmul_bf16_tflops: Option<f64>,
    /// Reading memory.
    read_gb_per_s: f64,
}

impl Ceilings {
    /// Measures what a model of a number type is compared with, with all threads that the recipe allows.
    pub(crate) fn measure(device: Device, kind: Kind) -> Result<Self, Failure> {
        if let Some(threads) = thread_budget() {
            set_operation_threads(threads);
        }
        let matmul = |kind| matmul_flops_per_sec_of(kind, device).map(|rate| rate / 1e12);
        Ok(Self {
            matmul_f32_tflops: matmul(Kind::Float)?,
            matmul_bf16_tflops: match kind {
                Kind::BFloat16 => Some(matmul(kind)?),
                _ => None,
            },
            read_gb_per_s: read_bytes_per_sec(device)? / 1e9,
        })
    }

    /// The better of two measurements: a busy machine only ever takes away.
    pub(crate) fn best(self, other: Self) -> Self {
        Self {
            matmul_f32_tflops: self.matmul_f32_tflops.max(other.matmul_f32_tflops),
            matmul_bf16_tflops: self
                .matmul_bf16_tflops
                .zip(other.matmul_bf16_tflops)
                .map(|(one, other)| one.max(other)),
            read_gb_per_s: self.read_gb_per_s.max(other.read_gb_per_s),
        }
    }

    /// Operations a second that a model can have: bf16 values can always be computed with as f32.
    pub(crate) fn flops_per_s(&self) -> f64 {
        let bf16 = self.matmul_bf16_tflops.unwrap_or(0.0);
        1e12 * self.matmul_f32_tflops.max(bf16)
    }

    pub(crate) fn bytes_per_s(&self) -> f64 {
        self.read_gb_per_s * 1e9
    }
}
