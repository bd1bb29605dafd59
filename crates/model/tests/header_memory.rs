//! What a hostile weight file can make the program allocate. Alone in its process, because the peak is the process's.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use asyncthink_model::{Decoder, ModelConfig, ModelSizes};
use asyncthink_torch::{peak_bytes, reset_peak_memory};
use std::fmt::Write as _;
use tch::{Device, Kind};

/// Bytes of each hostile header.
const HEADER_BYTES: usize = 24 << 20;

/// Most bytes of memory per byte of header: the header itself, and its tensors by name and by offset.
const MAX_FACTOR: f64 = 8.0;

#[test]
fn a_header_takes_no_more_than_a_few_times_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = ModelSizes {
        vocab_size: 8,
        hidden_size: 4,
        intermediate_size: 4,
        num_layers: 1,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 4,
        rope_theta: 10_000.0,
        max_position_embeddings: 16,
        tie_word_embeddings: true,
        eos_token_id: 0,
    };
    let config = ModelConfig::new(&sizes).unwrap();
    config.save(dir.path(), "float32").unwrap();
    let ones = "1,".repeat(HEADER_BYTES / 2);
    let info = r#"{"dtype":"U8","shape":[],"data_offsets":[0,0]}"#;
    let mut tensors = String::new();
    for index in 0..HEADER_BYTES / 60 {
        write!(tensors, r#""{index:x}":{info},"#).unwrap();
    }
    for (name, header) in [
        (
            "a shape without an end",
            format!(r#"{{"a":{{"dtype":"U8","shape":[{ones}1]"#),
        ),
        (
            "a list in place of a tensor",
            format!(r#"{{"a":[{ones}1]}}"#),
        ),
        ("an unknown field", format!(r#"{{"a":{{"x":[{ones}1]"#)),
        ("metadata", format!(r#"{{"__metadata__":[{ones}1]"#)),
        ("nesting", "[".repeat(HEADER_BYTES)),
        ("a long name", format!(r#"{{"{ones}":1"#)),
        ("many tensors", format!("{{{tensors}\"last\":1}}")),
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        fs_err::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        let header_bytes = header.len() as f64;
        drop((bytes, header));
        // Where the peak cannot be reset, the growth is that beyond an earlier peak, and the bound holds all the more.
        reset_peak_memory(Device::Cpu);
        let before = peak_bytes(Device::Cpu).unwrap();
        let error = Decoder::load(dir.path(), Device::Cpu, Kind::Float).unwrap_err();
        assert!(error.to_string().contains("safetensors"), "{name}: {error}");
        let growth = peak_bytes(Device::Cpu).unwrap().saturating_sub(before) as f64;
        assert!(
            growth <= MAX_FACTOR * header_bytes,
            "{name}: {growth} bytes for a header of {header_bytes}"
        );
    }
}
