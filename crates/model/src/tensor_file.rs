//! One safetensors file, read and written tensor by tensor.
//!
//! Files are read by position and not mapped: a file that another program cuts short then gives an error where a mapping
//! would kill the process, and what is resident is the tensors and one chunk, not the file as well.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use asyncthink_files::FileKind;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::weight_header::{self, HeaderError, PREFIX_BYTES, WeightHeader};

/// Bytes of a tensor that are in memory beside it while it is converted. Small, for the allocator leaves holes of this size
/// between the tensors: 4 MiB cost a model of 0.6 billion weights 110 MiB.
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes of two tensors each that are in memory while they are compared.
const COMPARED_BYTES: usize = 1 << 20;

/// An open file whose header has been checked against its length.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: fs_err::File,
    header: WeightHeader,
}

impl TensorFile {
    /// Reads and checks the header; nothing larger than it is allocated.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let other_kind = || {
            let kind = FileKind::of_path(path)?;
            let path = path.to_owned();
            Some(Error::File(asyncthink_files::Error::OtherKind {
                path,
                kind,
            }))
        };
        if path.is_dir()
            && let Some(error) = other_kind()
        {
            return Err(error);
        }
        let file = fs_err::File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let read_exact_at =
            |buffer: &mut [u8], position| file.file().read_exact_at(buffer, position);
        let header =
            weight_header::read(file_bytes, read_exact_at).map_err(|error| match error {
                HeaderError::Io(error) => Error::Io(error),
                HeaderError::Refused(reason) => other_kind().unwrap_or_else(|| Error::Weights {
                    path: path.to_owned(),
                    reason,
                }),
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

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// Bytes that a tensor takes in the file.
    pub(crate) fn tensor_bytes(&self, name: &str) -> u64 {
        let info = self.header.tensors.get(name);
        info.map_or(0, |info| (info.data_offsets.1 - info.data_offsets.0) as u64)
    }

    /// The type of a tensor that is there and has none of the types that are read.
    pub(crate) fn unread_dtype(&self, name: &str) -> Option<Dtype> {
        let dtype = self.header.tensors.get(name)?.dtype;
        stored_kind(dtype).is_none().then_some(dtype)
    }

    /// Whether a tensor of this file equals one of another file in shape and values.
    pub(crate) fn same_values(&self, name: &str, other: &Self, other_name: &str) -> Result<bool> {
        let tensors = (
            self.header.tensors.get(name),
            other.header.tensors.get(other_name),
        );
        let (Some(ours), Some(theirs)) = tensors else {
            return Ok(false);
        };
        if ours.shape != theirs.shape {
            return Ok(false);
        }
        if ours.dtype != theirs.dtype {
            let read = |file: &Self, name| file.read(name, Device::Cpu, Kind::Float);
            return Ok(read(self, name)?.f_equal(&read(other, other_name)?)?);
        }
        let num_bytes = ours.data_offsets.1 - ours.data_offsets.0;
        let mut buffers = [(); 2].map(|()| vec![0; COMPARED_BYTES.min(num_bytes)]);
        let [left, right] = &mut buffers;
        for at in (0..num_bytes).step_by(COMPARED_BYTES) {
            let len = COMPARED_BYTES.min(num_bytes - at);
            self.read_bytes(ours, at, &mut left[..len])?;
            other.read_bytes(theirs, at, &mut right[..len])?;
            if left[..len] != right[..len] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a part of a tensor that begins `at` bytes after the tensor does.
    fn read_bytes(&self, info: &TensorInfo, at: usize, buffer: &mut [u8]) -> Result<()> {
        let position = self.header.data_start + (info.data_offsets.0 + at) as u64;
        Ok(self.file.file().read_exact_at(buffer, position)?)
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
            self.read_bytes(info, at - start, chunk)?;
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

/// Bytes that a tensor takes in a file, in its own type or as `kind`.
pub(crate) fn num_bytes_as(tensor: &Tensor, kind: Option<Kind>) -> usize {
    tensor.numel() * kind.unwrap_or_else(|| tensor.kind()).elt_size_in_bytes()
}

/// Bytes that a tensor takes in a file.
pub(crate) fn num_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Writes tensors, each in the type that it has and a chunk at a time.
pub(crate) fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    write_as(path, tensors, None)
}

/// Writes tensors a chunk at a time, each in the type that it has or all as `kind`.
pub(crate) fn write_as(
    path: &Path,
    tensors: &[(String, Tensor)],
    kind: Option<Kind>,
) -> Result<()> {
    let as_kind = kind;
    let refuse = |reason: String| Error::Weights {
        path: path.to_owned(),
        reason,
    };
    let mut infos = Vec::with_capacity(tensors.len());
    let mut offset = 0;
    for (name, tensor) in tensors {
        let kind = as_kind.unwrap_or_else(|| tensor.kind());
        let dtype = dtype_of(kind)
            .ok_or_else(|| refuse(format!("`{name}` has type {kind:?}, which is not written")))?;
        let end = offset + num_bytes_as(tensor, as_kind);
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
        write_values(tensor, as_kind, &mut buffer, &mut file)?;
    }
    file.flush()?;
    Ok(())
}

fn write_values(
    tensor: &Tensor,
    kind: Option<Kind>,
    buffer: &mut Vec<u8>,
    out: &mut impl Write,
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let flat = tensor.f_detach()?.f_contiguous()?.f_view([-1])?;
    let chunk_elements = signed(CHUNK_BYTES / tensor.kind().elt_size_in_bytes());
    let num_elements = signed(tensor.numel());
    let mut first = 0;
    while first < num_elements {
        let count = chunk_elements.min(num_elements - first);
        let mut chunk = flat.f_narrow(0, first, count)?;
        if let Some(kind) = kind {
            chunk = chunk.f_to_kind(kind)?;
        }
        let chunk = chunk.f_to_device(Device::Cpu)?;
        buffer.resize(num_bytes(&chunk), 0);
        chunk.f_copy_data_u8(buffer, chunk.numel())?;
        out.write_all(buffer)?;
        first += count;
    }
    Ok(())
}
