//! Collectives of a device, in a group of one rank: gloo on CPUs, NCCL on GPUs.

use std::time::Duration;

use asyncthink_torch::{GroupOptions, ProcessGroup, Reduction, Store, StoreOptions};
use tch::{Device, Kind, Tensor};

use super::check::Check;

/// Sums a tensor over the one rank of a group.
pub(super) fn check(device: Device) -> Check {
    let name = match device {
        Device::Cuda(_) => "collectives, NCCL of one rank",
        _ => "collectives, gloo of one rank",
    };
    Check::new(name, sum(device).map_err(|error| error.to_string()))
}

fn sum(device: Device) -> Result<String, Box<dyn std::error::Error>> {
    let timeout = Duration::from_mins(1);
    let store = Store::serve(
        "127.0.0.1",
        0,
        &StoreOptions {
            timeout,
            ..StoreOptions::default()
        },
    )?;
    let options = GroupOptions {
        rank: 0,
        world_size: 1,
        timeout,
        name: "self-test".to_owned(),
        store_rank: Some(0),
    };
    let group = ProcessGroup::with_backend(&store, device, &options)?;
    let expected = Tensor::f_arange(1000, (Kind::Float, device))?;
    let mut tensor = expected.f_detach_copy()?;
    group.all_reduce(&mut tensor, Reduction::Sum)?.wait()?;
    if tensor.f_equal(&expected)? {
        Ok(format!("{:?}", group.backend()))
    } else {
        Err("the sum over one rank is not its summand".into())
    }
}
