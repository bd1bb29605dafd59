//! The device of a rank, and its part of the machine's cores.

use asyncthink_recipe::RecipeData;
use asyncthink_torch::{DeviceSpec, keep_freed_memory, set_num_threads};
use tch::Device;

use crate::error::{Error, Result};

/// Where a process computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSettings {
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// CPU threads; 0 takes all cores.
    pub num_threads: usize,
}

impl DeviceSettings {
    /// The settings of a recipe.
    pub fn of(recipe: &RecipeData) -> Self {
        Self {
            device: recipe.device.to_string(),
            num_threads: recipe.num_threads,
        }
    }
}

/// Opens the device and sets the number of threads. To be called before any other use of libtorch.
///
/// # Errors
/// When the device is not there, or threads already run in another number.
pub fn open_device(settings: &DeviceSettings) -> Result<Device> {
    let spec: DeviceSpec = settings.device.parse()?;
    let device = asyncthink_torch::open_device(&spec)?;
    set_num_threads(settings.num_threads)?;
    keep_freed_memory();
    Ok(device)
}

/// As [`open_device`] for one of several ranks of a machine: each has a GPU of its own, and its part of the cores
/// ([`share_cores`]).
pub(crate) fn open_device_of_rank(
    settings: &DeviceSettings,
    local_rank: usize,
    num_local_ranks: usize,
) -> Result<Device> {
    let name = settings.device.as_str();
    let own_gpu = DeviceSpec::Cuda(local_rank);
    let device = match name.parse()? {
        DeviceSpec::Cuda(_) if name == "cuda" => asyncthink_torch::open_device(&own_gpu)?,
        DeviceSpec::Cuda(_) if num_local_ranks > 1 => {
            return Err(Error::SharedGpu {
                device: name.to_owned(),
                num_local_ranks,
            });
        }
        spec => match asyncthink_torch::open_device(&spec)? {
            Device::Cuda(_) if spec == DeviceSpec::Auto => asyncthink_torch::open_device(&own_gpu)?,
            device => device,
        },
    };
    share_cores(settings, num_local_ranks)?;
    keep_freed_memory();
    Ok(device)
}

/// Gives this rank its part of the machine's cores, unless a number of threads is given.
pub(crate) fn share_cores(settings: &DeviceSettings, num_local_ranks: usize) -> Result<()> {
    let num_threads = match settings.num_threads {
        0 => (available_cores() / num_local_ranks).max(1),
        given => given,
    };
    Ok(set_num_threads(num_threads)?)
}

fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
