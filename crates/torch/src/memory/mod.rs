//! How much memory is in use, and what becomes of freed memory.
#![expect(unsafe_code, reason = "calls the C++ side")]

mod usage;

use tch::Device;

pub use usage::MemoryUse;

use crate::cuda;
use crate::error::Result;
use crate::ffi;

/// Lets the process keep the memory that tensors free, for the tensors to come, instead of handing it back to the system.
/// It changes speed and the resident size, never a result; to be called once, at the start of a run.
pub fn keep_freed_memory() {
    // SAFETY: takes no arguments and only sets parameters of the C library's allocator, which may be set at any time.
    unsafe { ffi::asyncthink_keep_freed_memory() }
}

/// Memory in use on `device`, or `None` where it cannot be told.
pub fn memory_use(device: Device) -> Option<MemoryUse> {
    match device {
        Device::Cpu => process_memory(&std::fs::read_to_string("/proc/self/status").ok()?),
        Device::Cuda(index) => cuda::statistics()?.memory(index).ok(),
        Device::Mps | Device::Vulkan => None,
    }
}

/// Bytes that are free on `device` for this process, or `None` where it cannot be told.
pub fn free_bytes(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => available_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?),
        Device::Cuda(index) => cuda::statistics()?.free_bytes(index).ok(),
        Device::Mps | Device::Vulkan => None,
    }
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// [`MemoryUse::current_bytes`] of `device`.
pub fn allocated_bytes(device: Device) -> Option<u64> {
    memory_use(device).map(|memory| memory.current_bytes)
}

/// [`MemoryUse::peak_bytes`] of `device`.
pub fn peak_bytes(device: Device) -> Option<u64> {
    memory_use(device).map(|memory| memory.peak_bytes)
}

/// Starts the peak of `device` anew from the present use, so that one phase can be measured; where that cannot be
/// done, the peak goes on from before.
pub fn reset_peak_memory(device: Device) {
    match device {
        Device::Cpu => {
            // 5 resets the peak resident set size (proc_pid_clear_refs(5)); refused in some containers.
            let _ = std::fs::write("/proc/self/clear_refs", "5");
        }
        Device::Cuda(index) => {
            if let Some(statistics) = cuda::statistics() {
                let _ = statistics.reset_peak(index);
            }
        }
        Device::Mps | Device::Vulkan => {}
    }
}

/// Gives memory that no tensor uses back to the system, so that another phase or process can have it.
///
/// # Errors
/// A failure of CUDA, which may be one of an earlier kernel.
pub fn empty_cache(device: Device) -> Result<()> {
    match (device, cuda::statistics()) {
        (Device::Cuda(_), Some(statistics)) => statistics.empty_cache(),
        (Device::Cpu, _) => {
            // SAFETY: takes a number of bytes to keep, and may be called at any time.
            let _ = unsafe { ffi::malloc_trim(0) };
            Ok(())
        }
        _ => Ok(()),
    }
}

fn process_memory(status: &str) -> Option<MemoryUse> {
    let bytes = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    };
    let current_bytes = bytes("VmRSS:")?;
    // The two are not read at one instant by the kernel either.
    let peak_bytes = bytes("VmHWM:")?.max(current_bytes);
    Some(MemoryUse {
        current_bytes,
        peak_bytes,
        reserved_bytes: current_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let expected = MemoryUse {
            current_bytes: 1 << 20,
            peak_bytes: 2 << 20,
            reserved_bytes: 1 << 20,
        };
        assert_eq!(process_memory(status), Some(expected));
        assert_eq!(process_memory("Name:\tx\n"), None);
    }

    #[test]
    fn a_tensor_shows_in_the_peak() {
        const BYTES: i64 = 64 << 20;
        let before = memory_use(Device::Cpu).unwrap();
        let tensor = tch::Tensor::ones([BYTES / 4], (tch::Kind::Float, Device::Cpu));
        let during = memory_use(Device::Cpu).unwrap();
        drop(tensor);
        assert!(
            during.peak_bytes >= before.current_bytes + 3 * (BYTES as u64) / 4,
            "{before:?} {during:?}"
        );
        reset_peak_memory(Device::Cpu);
        empty_cache(Device::Cpu).unwrap();
    }
}
