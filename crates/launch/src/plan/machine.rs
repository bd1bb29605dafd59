//! CPUs and GPUs of this machine, found without libtorch.

use std::path::Path;

/// The machine that a launch is planned for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name in reports.
    pub host: String,
    /// CPUs that this process may use.
    pub num_cpus: usize,
    /// GPUs that a rank will see, or why there are none.
    pub gpus: Result<usize, String>,
}

impl Machine {
    /// This machine.
    pub fn detect() -> Self {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        Self {
            host: host_name(),
            num_cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            gpus: visible_gpus(visible.as_deref(), installed_gpus()),
        }
    }
}

/// The machine's name, or `localhost` where it has none that can be shown.
pub fn host_name() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy();
    if name.is_empty() || name.chars().any(char::is_control) {
        "localhost".to_owned()
    } else {
        name.into_owned()
    }
}

/// GPUs of the driver; `None` where the driver says nothing.
fn installed_gpus() -> Option<usize> {
    if let Some(names) = names_in(Path::new("/proc/driver/nvidia/gpus")) {
        return Some(names.len());
    }
    // In some containers only the devices themselves are there.
    let devices = names_in(Path::new("/dev")).unwrap_or_default();
    let is_gpu = |name: &String| {
        name.strip_prefix("nvidia")
            .is_some_and(|index| !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()))
    };
    let num = devices.iter().filter(|name| is_gpu(name)).count();
    (num > 0).then_some(num)
}

fn names_in(folder: &Path) -> Option<Vec<String>> {
    let entries = fs_err::read_dir(folder).ok()?;
    let names = entries.filter_map(Result::ok);
    Some(
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect(),
    )
}

/// How many GPUs CUDA shows a process: those of `CUDA_VISIBLE_DEVICES` up to
/// the first entry that names none, or all where it is not set.
fn visible_gpus(visible: Option<&str>, installed: Option<usize>) -> Result<usize, String> {
    let no_driver = "no GPU is listed in /proc/driver/nvidia/gpus";
    let Some(visible) = visible else {
        return match installed {
            Some(num) if num > 0 => Ok(num),
            _ => Err(no_driver.to_owned()),
        };
    };
    if installed == Some(0) {
        return Err(no_driver.to_owned());
    }
    let is_device = |entry: &&str| match entry.parse::<usize>() {
        Ok(index) => installed.is_none_or(|num| index < num),
        Err(_) => entry.starts_with("GPU-") || entry.starts_with("MIG-"),
    };
    let num = visible
        .split(',')
        .map(str::trim)
        .take_while(is_device)
        .count();
    if num > 0 {
        Ok(num)
    } else {
        Err(format!("`CUDA_VISIBLE_DEVICES={visible}` shows no GPU"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_devices_are_counted_as_cuda_does() {
        let num = |visible, installed| visible_gpus(visible, installed).ok();
        assert_eq!(num(None, Some(8)), Some(8));
        assert_eq!(num(None, None), None);
        assert_eq!(num(None, Some(0)), None);
        assert_eq!(num(Some("0,2"), Some(8)), Some(2));
        assert_eq!(num(Some("0, 9,1"), Some(8)), Some(1));
        assert_eq!(num(Some("1,-1,2"), Some(8)), Some(1));
        assert_eq!(num(Some("GPU-ab,GPU-cd"), Some(8)), Some(2));
        assert_eq!(num(Some("0,1"), None), Some(2));
        assert_eq!(num(Some("0"), Some(0)), None);
        let reason = visible_gpus(Some(""), Some(8)).expect_err("none is visible");
        assert!(reason.contains("CUDA_VISIBLE_DEVICES"), "{reason}");
    }

    #[test]
    fn this_machine_has_a_name_and_a_cpu() {
        let machine = Machine::detect();
        assert!(!machine.host.is_empty());
        assert!(machine.num_cpus > 0);
    }
}
