//! `TFRecord` framing: length, checksum of the length, bytes, checksum of the bytes; little endian.

use crc::{CRC_32_ISCSI, Crc};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Added to a rotated checksum, so that a checksum of bytes that hold checksums is none of them.
const MASK: u32 = 0xa282_ead8;

/// Bytes of length and its checksum.
const HEAD_BYTES: usize = 12;

/// Bytes of the checksum behind the content.
const TAIL_BYTES: usize = 4;

/// Frames `content`.
pub(super) fn frame(content: &[u8]) -> Vec<u8> {
    let len = (content.len() as u64).to_le_bytes();
    let mut record = len.to_vec();
    record.extend(masked_crc(&len).to_le_bytes());
    record.extend(content);
    record.extend(masked_crc(content).to_le_bytes());
    record
}

/// The content of the record that `bytes` begin with, and its size with the frame; `None` where none is whole.
pub(super) fn first(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let len_bytes: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let head = bytes.get(..HEAD_BYTES)?;
    if head[8..] != masked_crc(&len_bytes).to_le_bytes() {
        return None;
    }
    let len = usize::try_from(u64::from_le_bytes(len_bytes)).ok()?;
    let end = HEAD_BYTES.checked_add(len)?;
    let content = bytes.get(HEAD_BYTES..end)?;
    let size = end.checked_add(TAIL_BYTES)?;
    let is_whole = *bytes.get(end..size)? == masked_crc(content).to_le_bytes();
    is_whole.then_some((content, size))
}

fn masked_crc(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes).rotate_right(15).wrapping_add(MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_a_broken_one_is_none() {
        let record = frame(b"some content");
        let longer = [record.as_slice(), b"rest"].concat();
        assert_eq!(first(&longer), Some((&b"some content"[..], record.len())));
        assert_eq!(first(&record[..record.len() - 1]), None);
        for index in 0..record.len() {
            let mut broken = record.clone();
            broken[index] ^= 1;
            assert_eq!(first(&broken), None, "{index}");
        }
    }
}
