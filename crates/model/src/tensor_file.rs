//! One safetensors file, read and written tensor by tensor.
//!
//! Files are read by position and not mapped: a file that another program cuts short then gives an error where a mapping
//! would kill the process, and what is resident is the tensors and one chunk, not the file as well.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::weight_header::{self, HeaderError, PREFIX_BYTES, WeightHeader};

/// Bytes of a tensor that are in memory beside it while it is converted. Small, for the allocator leaves holes of this size
/// between the tensors: 4 MiB cost a model of 0.6 billion weights 110 MiB.
const CHUNK_BYTES: usize = 256 << 10;

/// An open file whose header has been checked against its length.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: fs_err::File,
    header: WeightHeader,
}

impl TensorFile {
    /// Reads and checks the header; nothing larger than it is allocated.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = fs_err::File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let read_exact_at =
            |buffer: &mut [u8], position| file.file().read_exact_at(buffer, position);
        let header =
            weight_header::read(file_bytes, read_exact_at).map_err(|error| match error {
                HeaderError::Io(error) => Error::Io(error),
                HeaderError::Refused(reason) => Error::Weights {
                    path: path.to_owned(),
                    reason,
                },
            })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
        })
    }

    /// Every tensor's name and shape, by name.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&str, Vec<i64>)> {
        self.header
            .tensors
            .iter()
            .map(|(name, info)| (name.as_str(), signed_shape(info)))
    }

    /// Reads a tensor of the file as `kind` on `device`, a chunk at a time.
    pub(crate) fn read(&self, name: &str, device: Device, kind: Kind) -> Result<Tensor> {
        let refuse = |reason: String| Error::Weights {
            path: self.path.clone(),
            reason,
        };
        let info = self
            .header
            .tensors
            .get(name)
            .ok_or_else(|| refuse(format!("there is no `{name}`")))?;
        let stored = stored_kind(info.dtype)
            .ok_or_else(|| refuse(format!("`{name}` has type {}", info.dtype)))?;
        let shape = signed_shape(info);
        let tensor = Tensor::f_empty(&shape, (kind, device))?;
        let flat = tensor.f_view([-1])?;
        let element_bytes = stored.elt_size_in_bytes();
        let (start, end) = info.data_offsets;
        let mut buffer = vec![0; CHUNK_BYTES.min(end - start)];
        let mut at = start;
        while at < end {
            let chunk = &mut buffer[..CHUNK_BYTES.min(end - at)];
            let position = self.header.data_start + at as u64;
            self.file.file().read_exact_at(chunk, position)?;
            let num_elements = signed(chunk.len() / element_bytes);
            let first = signed((at - start) / element_bytes);
            let values = Tensor::f_from_data_size(chunk, &[num_elements], stored)?;
            flat.f_narrow(0, first, num_elements)?.f_copy_(&values)?;
            at += chunk.len();
        }
        Ok(tensor)
    }
}

/// Sizes of tensors fit: the file that holds them has been measured.
fn signed(size: usize) -> i64 {
    size.cast_signed() as i64
}

fn signed_shape(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().copied().map(signed).collect()
}

fn stored_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    match kind {
        Kind::Float => Some(Dtype::F32),
        Kind::Half => Some(Dtype::F16),
        Kind::BFloat16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// Bytes that a tensor takes in a file.
pub(crate) fn num_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Writes tensors, each in the type that it has and a chunk at a time.
pub(crate) fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let refuse = |reason: String| Error::Weights {
        path: path.to_owned(),
        reason,
    };
    let mut infos = Vec::with_capacity(tensors.len());
    let mut offset = 0;
    for (name, tensor) in tensors {
        let kind = tensor.kind();
        let dtype = dtype_of(kind)
            .ok_or_else(|| refuse(format!("`{name}` has type {kind:?}, which is not written")))?;
        let end = offset + num_bytes(tensor);
        infos.push((
            name.clone(),
            TensorInfo {
                dtype,
                shape: tensor
                    .size()
                    .iter()
                    .map(|&size| usize::try_from(size).unwrap_or(0))
                    .collect(),
                data_offsets: (offset, end),
            },
        ));
        offset = end;
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(metadata), infos).map_err(|error| refuse(error.to_string()))?;
    let mut header =
        serde_json::to_vec(&header).map_err(|error| refuse(format!("no header: {error}")))?;
    // Tensors begin at a multiple of 8, as the format's library has it.
    header.resize(header.len().next_multiple_of(PREFIX_BYTES), b' ');
    let mut file = BufWriter::new(fs_err::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut buffer = Vec::new();
    for (_, tensor) in tensors {
        write_values(tensor, &mut buffer, &mut file)?;
    }
    file.flush()?;
    Ok(())
}

fn write_values(tensor: &Tensor, buffer: &mut Vec<u8>, out: &mut impl Write) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let flat = tensor.f_detach()?.f_contiguous()?.f_view([-1])?;
    let chunk_elements = signed(CHUNK_BYTES / tensor.kind().elt_size_in_bytes());
    let num_elements = signed(tensor.numel());
    let mut first = 0;
    while first < num_elements {
        let count = chunk_elements.min(num_elements - first);
        let chunk = flat.f_narrow(0, first, count)?.f_to_device(Device::Cpu)?;
        buffer.resize(num_bytes(&chunk), 0);
        chunk.f_copy_data_u8(buffer, chunk.numel())?;
        out.write_all(buffer)?;
        first += count;
    }
    Ok(())
}
