//! Any header of a weight file is answered without a panic, and an accepted one lays its tensors out so that they can be read.
//!
//! Input: a byte of settings. If it is even, the rest is the whole file. Otherwise the rest is the header: its length is put
//! before it, and after it as many bytes as the last number in it says, which is where its last tensor should end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

// The crate itself needs libtorch; this file of it does not.
#[allow(dead_code, reason = "reasons of a refusal are for people")]
#[path = "../../crates/model/src/weight_header.rs"]
mod weight_header;

use weight_header::{PREFIX_BYTES, read};

fuzz_target!(|data: &[u8]| {
    match data {
        [flags, file @ ..] if flags % 2 == 0 => check(file, file.len()),
        [_, header @ ..] => {
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header);
            file.resize(file.len() + last_number(header), 0);
            check(&file, file.len());
        }
        [] => {}
    }
});

/// The last number below 65,536 that is written in a text.
fn last_number(text: &[u8]) -> usize {
    text.rsplit(|byte| !byte.is_ascii_digit())
        .find_map(|digits| str::from_utf8(digits).ok()?.parse::<u16>().ok())
        .map_or(0, usize::from)
}

fn check(file: &[u8], file_bytes: usize) {
    let result = read(file_bytes as u64, |buffer, position| {
        assert!(buffer.len() <= file_bytes.max(PREFIX_BYTES));
        let start = position as usize;
        buffer.copy_from_slice(&file[start..start + buffer.len()]);
        Ok(())
    });
    let Ok(header) = result else { return };
    let data_start = header.data_start as usize;
    let mut ranges = Vec::new();
    for info in header.tensors.values() {
        let (start, end) = info.data_offsets;
        assert!(start <= end && data_start + end <= file_bytes);
        let num_elements: usize = info.shape.iter().product();
        assert_eq!(num_elements * info.dtype.bitsize(), (end - start) * 8);
        ranges.push((start, end));
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    let covered: usize = ranges.iter().map(|(start, end)| end - start).sum();
    assert_eq!(data_start + covered, file_bytes);
    // Where the format's own library reads the header too, it reads the same.
    if let Ok((_, theirs)) = SafeTensors::read_metadata(file) {
        assert_eq!(theirs.tensors().len(), header.tensors.len());
        for (name, info) in &header.tensors {
            let other = theirs.info(name).expect("the same names");
            assert_eq!(info.data_offsets, other.data_offsets);
            assert_eq!((info.dtype, &info.shape), (other.dtype, &other.shape));
        }
    }
}
