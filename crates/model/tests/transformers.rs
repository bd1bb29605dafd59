//! Log-probs equal those of Hugging Face `transformers` on models that it made: `scripts/golden/qwen3_logits.py`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a panic is a failed test, and the numbers are small"
)]

use std::path::Path;

use asyncthink_model::Decoder;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Expected {
    ids: Vec<i64>,
    logprobs: Vec<f64>,
}

#[test]
fn logprobs_equal_those_of_transformers() {
    for name in ["tied_one_kv_head", "untied_grouped"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name);
        let text = fs_err::read_to_string(dir.join("expected.json")).unwrap();
        let expected: Expected = serde_json::from_str(&text).unwrap();
        let decoder = Decoder::load(&dir, Device::Cpu, Kind::Float).unwrap();
        let ids = Tensor::from_slice(&expected.ids);
        let hidden = decoder
            .hidden_packed(&ids, &[expected.ids.len() as i64])
            .unwrap();
        let logprobs = decoder
            .lm_head(&hidden)
            .unwrap()
            .log_softmax(-1, Kind::Float);
        for (position, logprob) in expected.logprobs.iter().enumerate() {
            let ours = logprobs.double_value(&[position as i64, expected.ids[position + 1]]);
            assert!(
                (ours - logprob).abs() < 1e-4,
                "{name}, position {position}: {ours}, expected {logprob}"
            );
        }
    }
}
