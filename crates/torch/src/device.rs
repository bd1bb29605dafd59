//! Choosing a device, and opening CUDA at run time.
#![expect(unsafe_code, reason = "opens a dynamic library")]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::cuda;
use crate::error::{Error, Result};
use crate::library::linker_message;

/// A device as a recipe names it: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceSpec {
    /// The first GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index among those that CUDA shows.
    Cuda(usize),
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        let unknown = || Error::UnknownDevice {
            value: value.to_owned(),
        };
        match value {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            "cuda" => Ok(DeviceSpec::Cuda(0)),
            _ => {
                let digits = value.strip_prefix("cuda:").ok_or_else(unknown)?;
                // `parse` alone would take `cuda:+1`.
                if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(unknown());
                }
                digits.parse().map(DeviceSpec::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Opens the device that `spec` names. To be called before any other use of libtorch, which decides once and for all
/// whether CUDA is there.
///
/// `auto` never fails: where a GPU is present but cannot be used, it gives the CPU and [`why_not_cuda`] tells why.
///
/// # Errors
/// For `cuda` and `cuda:N`: a libtorch without CUDA, CUDA libraries that cannot be opened, no GPU, or an index that
/// does not exist.
pub fn open_device(spec: &DeviceSpec) -> Result<tch::Device> {
    match *spec {
        DeviceSpec::Cpu => Ok(tch::Device::Cpu),
        DeviceSpec::Cuda(index) => open_cuda(&spec.to_string(), index),
        DeviceSpec::Auto if !gpu_driver_present() => Ok(tch::Device::Cpu),
        DeviceSpec::Auto => match open_cuda("auto", 0) {
            Ok(device) => Ok(device),
            Err(error) => {
                // A second call has nothing to add to the first one's reason.
                let _ = WHY_NOT_CUDA.set(error.to_string());
                Ok(tch::Device::Cpu)
            }
        },
    }
}

/// Why `auto` gave the CPU although a GPU driver is present, if it did.
pub fn why_not_cuda() -> Option<&'static str> {
    WHY_NOT_CUDA.get().map(String::as_str)
}

static WHY_NOT_CUDA: OnceLock<String> = OnceLock::new();

/// The CUDA half of libtorch, never closed: its kernels stay registered.
static CUDA_LIBRARY: OnceLock<Library> = OnceLock::new();

fn open_cuda(device: &str, index: usize) -> Result<tch::Device> {
    let folder = libtorch_folder()?;
    load_cuda_library(device, &folder)?;
    // `device_count` is 0 and not an error where the driver is missing or hides every GPU.
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    if count == 0 || !tch::Cuda::is_available() {
        return Err(Error::NoGpu {
            device: device.to_owned(),
        });
    }
    if index >= count {
        return Err(Error::NoSuchGpu {
            device: device.to_owned(),
            count,
        });
    }
    // Statistics only: a program without them still trains.
    let _ = cuda::open_statistics();
    Ok(tch::Device::Cuda(index))
}

fn load_cuda_library(device: &str, folder: &Path) -> Result<()> {
    if CUDA_LIBRARY.get().is_some() {
        return Ok(());
    }
    let path = folder.join("libtorch_cuda.so");
    if !path.exists() {
        return Err(Error::NoCudaLibrary {
            device: device.to_owned(),
            folder: folder.to_owned(),
        });
    }
    // SAFETY: the library belongs to the libtorch that this program runs with; its initialisers register kernels
    // with that libtorch, which is loaded already.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| Error::CudaLibrary {
        device: device.to_owned(),
        library: path,
        reason: linker_message(&error),
    })?;
    // Another thread may have been faster; the linker counts both as one.
    let _ = CUDA_LIBRARY.set(library);
    Ok(())
}

/// The folder from which the running program loaded `libtorch_cpu.so`.
pub(crate) fn libtorch_folder() -> Result<PathBuf> {
    const MAPS: &str = "/proc/self/maps";
    let maps = std::fs::read_to_string(MAPS).map_err(|error| Error::LibtorchNotFound {
        reason: format!("`{MAPS}`: {error}"),
    })?;
    folder_of("libtorch_cpu.so", &maps).ok_or_else(|| Error::LibtorchNotFound {
        reason: format!("`libtorch_cpu.so` is not in `{MAPS}`"),
    })
}

/// The folder of the first mapped file of that name; a mapping's path is the rest of its line from the first `/`.
fn folder_of(library: &str, maps: &str) -> Option<PathBuf> {
    maps.lines().find_map(|line| {
        let path = Path::new(&line[line.find('/')?..]);
        (path.file_name()? == library).then(|| path.parent().map(Path::to_owned))?
    })
}

/// Whether an NVIDIA driver shows itself, so that a machine without one never pays for opening CUDA.
fn gpu_driver_present() -> bool {
    ["/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"]
        .iter()
        .any(|device| Path::new(device).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_printed() {
        for (text, spec) in [
            ("auto", DeviceSpec::Auto),
            ("cpu", DeviceSpec::Cpu),
            ("cuda", DeviceSpec::Cuda(0)),
            ("cuda:3", DeviceSpec::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap(), spec);
            assert_eq!(spec.to_string().parse::<DeviceSpec>().unwrap(), spec);
        }
        for text in [
            "",
            "gpu",
            "CPU",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:99999999999999999999",
        ] {
            let error = text.parse::<DeviceSpec>().unwrap_err();
            assert_eq!(error.to_string(), format!("unknown device: `{text}`"));
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn libtorch_is_found_where_it_is_loaded() {
        assert!(libtorch_folder().unwrap().join("libtorch_cpu.so").exists());
        let maps = "7f00-7f01 r--p 00000000 08:01 12   /opt/with space/lib/libtorch_cpu.so\n7f02-7f03 rw-p 0 00:00 0\n";
        assert_eq!(
            folder_of("libtorch_cpu.so", maps).unwrap(),
            Path::new("/opt/with space/lib")
        );
        assert_eq!(folder_of("libtorch_cuda.so", maps), None);
    }

    #[test]
    fn missing_cuda_is_a_clear_error() {
        let folder = Path::new("/nowhere");
        let error = load_cuda_library("cuda:0", folder).unwrap_err();
        if CUDA_LIBRARY.get().is_none() {
            let expected = "device `cuda:0` needs `libtorch_cuda.so`, which is not in `/nowhere`";
            assert_eq!(error.to_string(), expected);
            assert!(error.hint().unwrap().contains("setup.sh --cuda"));
        }
    }

    #[test]
    fn device_matches_the_machine() {
        assert_eq!(open_device(&DeviceSpec::Cpu).unwrap(), tch::Device::Cpu);
        let auto = open_device(&DeviceSpec::Auto).unwrap();
        match open_device(&DeviceSpec::Cuda(0)) {
            Ok(device) => {
                assert_eq!((auto, device), (tch::Device::Cuda(0), tch::Device::Cuda(0)));
                let error = open_device(&DeviceSpec::Cuda(1000)).unwrap_err();
                assert!(matches!(error, Error::NoSuchGpu { .. }), "{error}");
            }
            Err(error) => {
                assert_eq!(auto, tch::Device::Cpu);
                assert!(error.to_string().contains("`cuda:0`"), "{error}");
                assert!(error.hint().is_some(), "{error}");
            }
        }
    }
}
