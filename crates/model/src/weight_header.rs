//! The header of a safetensors file: which tensor lies where.
//!
//! A header is what somebody else wrote, so it is checked whole before anything of a size that it names is allocated. It is
//! read entry by entry: the format's own library collects every entry as generic JSON first, so that a list of a million
//! numbers where a tensor should be takes 32 bytes for each.
//!
//! This file needs nothing else of this crate and no libtorch, so that the fuzz target `weight_header` can compile it alone.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Longest header that is read: that of the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the header's length; the header is padded to a multiple of it.
pub(crate) const PREFIX_BYTES: usize = 8;

/// Most dimensions of a tensor; libtorch's operations take no more.
const MAX_DIMS: usize = 64;

/// The entry that is no tensor. What it holds is not used.
const METADATA: &str = "__metadata__";

/// A header whose tensors fill the file: their ranges of bytes follow each other without gap or overlap, each has the bytes
/// of its type and shape, and the last one ends where the file does.
#[derive(Debug)]
pub(crate) struct WeightHeader {
    /// Where the first tensor begins in the file.
    pub(crate) data_start: u64,
    /// By name; offsets are from `data_start`.
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

/// Why there is no header.
#[derive(Debug)]
pub(crate) enum HeaderError {
    /// The file could not be read.
    Io(io::Error),
    /// The file's content is wrong; the reason.
    Refused(String),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads and checks the header of a file of `file_bytes` bytes, of which `read_exact_at` gives any part.
pub(crate) fn read(
    file_bytes: u64,
    read_exact_at: impl Fn(&mut [u8], u64) -> io::Result<()>,
) -> Result<WeightHeader, HeaderError> {
    let refuse = |reason: String| Err(HeaderError::Refused(reason));
    let Some(rest_bytes) = file_bytes.checked_sub(PREFIX_BYTES as u64) else {
        return refuse(format!("{file_bytes} bytes are no header"));
    };
    let mut prefix = [0; PREFIX_BYTES];
    read_exact_at(&mut prefix, 0)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES || header_bytes > rest_bytes {
        return refuse(format!(
            "a header of {header_bytes} bytes in a file of {file_bytes}"
        ));
    }
    let mut header = vec![0; usize::try_from(header_bytes).unwrap_or(0)];
    read_exact_at(&mut header, PREFIX_BYTES as u64)?;
    let tensors = parse(&header, rest_bytes - header_bytes).map_err(HeaderError::Refused)?;
    Ok(WeightHeader {
        data_start: PREFIX_BYTES as u64 + header_bytes,
        tensors,
    })
}

/// The tensors of a header that is followed by `data_bytes` bytes, or what is wrong with it.
fn parse(header: &[u8], data_bytes: u64) -> Result<BTreeMap<String, TensorInfo>, String> {
    let Entries(tensors) = serde_json::from_slice(header)
        .map_err(|error| format!("the header cannot be read: {error}"))?;
    let mut by_offset: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (name, info) in by_offset {
        let (start, stop) = info.data_offsets;
        if start != end || stop < start {
            return Err(format!(
                "the header has an invalid offset for tensor `{name}`"
            ));
        }
        if num_bytes(info) != Some(stop - start) {
            return Err(format!(
                "the header gives tensor `{name}` {} bytes, which are not those of its type and shape",
                stop - start
            ));
        }
        end = stop;
    }
    if end as u64 != data_bytes {
        return Err(format!(
            "tensors end at byte {end} of the data, which has {data_bytes}"
        ));
    }
    Ok(tensors)
}

/// Bytes of a tensor by type and shape; `None` where they are no whole number or more than can be counted.
fn num_bytes(info: &TensorInfo) -> Option<usize> {
    let num_elements = info
        .shape
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(size))?;
    let num_bits = num_elements.checked_mul(info.dtype.bitsize())?;
    num_bits.is_multiple_of(8).then_some(num_bits / 8)
}

/// The header's object, none of whose keys comes twice.
struct Entries(BTreeMap<String, TensorInfo>);

/// The library's own [`TensorInfo`] with a bounded shape.
#[derive(serde::Deserialize)]
struct Info {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (usize, usize),
}

struct Shape(Vec<usize>);

struct EntriesVisitor;

struct ShapeVisitor;

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let info: Info = map.next_value()?;
            match tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(TensorInfo {
                    dtype: info.dtype,
                    shape: info.shape.0,
                    data_offsets: info.data_offsets,
                }),
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format_args!(
                        "tensor `{}` is there twice",
                        entry.key()
                    )));
                }
            };
        }
        Ok(Entries(tensors))
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_DIMS} sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = sizes.next_element()? {
            if shape.len() == MAX_DIMS {
                return Err(A::Error::invalid_length(MAX_DIMS + 1, &self));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;

    /// Reads the header of a file whose first bytes are `bytes`, and whose others nobody may ask for.
    fn read_bytes(bytes: &[u8], file_bytes: u64) -> Result<WeightHeader, HeaderError> {
        read(file_bytes, |buffer, position| {
            let room = file_bytes
                .saturating_sub(PREFIX_BYTES as u64)
                .min(MAX_HEADER_BYTES);
            assert!(buffer.len() as u64 <= room.max(PREFIX_BYTES as u64));
            let start = usize::try_from(position).unwrap();
            let part = bytes.get(start..start + buffer.len());
            buffer.copy_from_slice(part.ok_or_else(|| io::Error::other("beyond the end"))?);
            Ok(())
        })
    }

    fn with_prefix(header: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes
    }

    /// What everything that reads a tensor relies on.
    fn assert_sound(header: &WeightHeader, file_bytes: u64) {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for info in header.tensors.values() {
            let (start, end) = info.data_offsets;
            assert!(start <= end && header.data_start + end as u64 <= file_bytes);
            assert!(info.shape.len() <= MAX_DIMS);
            let num_elements: usize = info.shape.iter().product();
            assert_eq!(num_elements * info.dtype.bitsize(), (end - start) * 8);
            ranges.push((start, end));
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{ranges:?}");
        }
        let covered: usize = ranges.iter().map(|(start, end)| end - start).sum();
        assert_eq!(header.data_start + covered as u64, file_bytes);
    }

    fn check(bytes: &[u8], file_bytes: u64) -> bool {
        let header = read_bytes(bytes, file_bytes);
        if let Ok(header) = &header {
            assert_sound(header, file_bytes);
        }
        header.is_ok()
    }

    /// A header with tensors laid end to end, in any order, and the bytes that they take.
    fn valid_header() -> impl Strategy<Value = (String, usize)> {
        let dtype = prop::sample::select(vec![
            ("F64", 8),
            ("F32", 4),
            ("BF16", 2),
            ("F16", 2),
            ("U8", 1),
        ]);
        let shape = prop::collection::vec(0_usize..4, 0..4);
        let tensors = prop::collection::vec((dtype, shape), 0..6);
        (tensors, any::<bool>()).prop_map(|(tensors, has_metadata)| {
            let mut offset = 0;
            let mut entries: Vec<String> = tensors
                .iter()
                .enumerate()
                .map(|(index, ((dtype, element_bytes), shape))| {
                    let end = offset + shape.iter().product::<usize>() * element_bytes;
                    let entry = format!(
                        r#""t{index}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#
                    );
                    offset = end;
                    entry
                })
                .collect();
            entries.reverse();
            if has_metadata {
                entries.push(r#""__metadata__":{"format":"pt"}"#.to_owned());
            }
            (format!("{{{}}}", entries.join(",")), offset)
        })
    }

    /// Damage: a byte replaced, some bytes removed, or a piece of a header put in.
    fn damage() -> impl Strategy<Value = (prop::sample::Index, usize, Vec<u8>)> {
        let pieces = prop::sample::select(vec![
            "0",
            "9",
            "-",
            "1e3",
            "18446744073709551615",
            ",",
            "[",
            "]",
            "{",
            "}",
            "\"",
            "\"t0\"",
            "null",
            "[4,0]",
            ",\"x\":1",
        ]);
        let pieces = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..2),
            pieces.prop_map(|piece| piece.as_bytes().to_vec()),
        ];
        (any::<prop::sample::Index>(), 0_usize..4, pieces)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200), more in 0_u64..300) {
            check(&bytes, bytes.len() as u64);
            let bytes = with_prefix(&bytes);
            check(&bytes, bytes.len() as u64 + more);
        }

        #[test]
        fn valid_headers_are_read_as_the_format_s_library_reads_them((header, data_bytes) in valid_header()) {
            let mut bytes = with_prefix(header.as_bytes());
            bytes.resize(bytes.len() + data_bytes, 0);
            let file_bytes = bytes.len() as u64;
            prop_assert!(check(&bytes, file_bytes), "{}", header);
            let ours = read_bytes(&bytes, file_bytes).unwrap().tensors;
            let (_, theirs) = SafeTensors::read_metadata(&bytes).unwrap();
            prop_assert_eq!(ours.len(), theirs.tensors().len());
            for (name, info) in ours {
                let other = theirs.info(&name).unwrap();
                prop_assert_eq!(info.dtype, other.dtype);
                prop_assert_eq!(&info.shape, &other.shape);
                prop_assert_eq!(info.data_offsets, other.data_offsets);
            }
            prop_assert!(!check(&bytes, file_bytes + 1) && !check(&bytes, file_bytes.saturating_sub(1)));
        }

        #[test]
        fn damaged_headers_are_answered(
            (header, data_bytes) in valid_header(),
            damages in prop::collection::vec(damage(), 1..4),
        ) {
            let mut header = header.into_bytes();
            for (place, num_removed, piece) in damages {
                let start = place.index(header.len() + 1);
                let end = (start + num_removed).min(header.len());
                header.splice(start..end, piece);
            }
            let bytes = with_prefix(&header);
            check(&bytes, (bytes.len() + data_bytes) as u64);
        }
    }

    #[test]
    fn a_name_comes_once_and_a_shape_has_an_end() {
        let refused = |header: String| match read_bytes(&with_prefix(header.as_bytes()), 1 << 20) {
            Err(HeaderError::Refused(reason)) => reason,
            other => panic!("{other:?}"),
        };
        let info = r#"{"dtype":"U8","shape":[],"data_offsets":[0,1]}"#;
        let reason = refused(format!(r#"{{"a":{info},"a":{info}}}"#));
        assert!(reason.contains("`a` is there twice"), "{reason}");
        let ones = vec!["1"; MAX_DIMS + 1].join(",");
        let reason = refused(format!(
            r#"{{"a":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}"#
        ));
        assert!(reason.contains("at most 64 sizes"), "{reason}");
    }
}
