//! Named tensors in a safetensors file, for the optimizer's state.

use std::path::Path;

use fs_err as fs;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// The bytes of a named f32 tensor.
#[derive(Debug)]
pub(crate) struct Values {
    name: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Values {
    /// Copies a tensor to the host, as f32.
    pub(crate) fn of(name: &'static str, tensor: &Tensor) -> Result<Self> {
        let host = tensor
            .detach()
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Float)?
            .f_contiguous()?;
        let mut bytes = vec![0_u8; host.numel() * 4];
        host.f_copy_data_u8(&mut bytes, host.numel())?;
        let shape = host
            .size()
            .iter()
            .map(|&size| usize::try_from(size).unwrap_or(0))
            .collect();
        Ok(Self { name, shape, bytes })
    }
}

/// Writes tensors into a file.
pub(crate) fn write(path: &Path, tensors: &[Values]) -> Result<()> {
    let fail = |error: safetensors::SafeTensorError| {
        Error::stage(format!("writing `{}`", path.display()), error)
    };
    let views = tensors
        .iter()
        .map(|values| {
            let view = TensorView::new(Dtype::F32, values.shape.clone(), &values.bytes)?;
            Ok((values.name, view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    safetensors::serialize_to_file(views, None, path).map_err(fail)
}

/// Reads f32 tensors onto the host.
pub(crate) fn load(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let context = || format!("reading `{}`", path.display());
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| Error::stage(context(), error))?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(Error::stage(context(), format!("`{name}` is not f32")));
            }
            let shape: Vec<i64> = view
                .shape()
                .iter()
                .map(|&size| i64::try_from(size).unwrap_or(i64::MAX))
                .collect();
            Ok((
                name.to_owned(),
                Tensor::f_from_data_size(view.data(), &shape, Kind::Float)?,
            ))
        })
        .collect()
}
