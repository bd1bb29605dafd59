//! Every family and rope form gives the log-probs of Hugging Face `transformers`: `scripts/golden/family_logits.py`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a panic is a failed test, and the numbers are small"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use asyncthink_model::{Decoder, KvCache, StepBatch};
use common::{BF16_WIDTH, WIDTH, logits, write_folder};
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Golden {
    ids: Vec<i64>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    config: Map<String, Value>,
    logprobs: Vec<f64>,
    bf16_logits: Vec<Vec<f64>>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families.json");
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn logprobs_equal_those_of_transformers() {
    let golden = golden();
    assert!(golden.cases.len() >= 8);
    for (name, case) in &golden.cases {
        let dir = tempfile::tempdir().unwrap();
        write_folder(dir.path(), &case.config, WIDTH, 1);
        let decoder = Decoder::load(dir.path(), Device::Cpu, Kind::Float).unwrap();
        let scores = logits(&decoder, &golden.ids).log_softmax(-1, Kind::Float);
        let mut worst = 0f64;
        for (position, expected) in case.logprobs.iter().enumerate() {
            let ours = scores.double_value(&[position as i64, golden.ids[position + 1]]);
            worst = worst.max((ours - expected).abs());
        }
        assert!(worst < 1e-4, "{name}: off by {worst}");

        write_folder(dir.path(), &case.config, BF16_WIDTH, 1);
        let decoder = Decoder::load(dir.path(), Device::Cpu, Kind::BFloat16).unwrap();
        let ours = logits(&decoder, &golden.ids);
        let num_rows = case.bf16_logits.len() as i64;
        let ours = ours.narrow(0, golden.ids.len() as i64 - num_rows, num_rows);
        let ours = ours.flatten(0, 1).to_kind(Kind::Double);
        let expected = Tensor::from_slice(&case.bf16_logits.concat());
        let cosine = (ours.dot(&expected) / (ours.norm() * expected.norm())).double_value(&[]);
        assert!(cosine > 0.9999, "{name}: cosine {cosine}");
    }
}

/// The path that samples uses the same layers: it must agree with the path that trains, in every family.
#[test]
fn decoding_agrees_with_a_plain_pass() {
    let golden = golden();
    for (name, case) in &golden.cases {
        let dir = tempfile::tempdir().unwrap();
        write_folder(dir.path(), &case.config, WIDTH, 2);
        let decoder = Decoder::load(dir.path(), Device::Cpu, Kind::Float).unwrap();
        let expected = tch::no_grad(|| logits(&decoder, &golden.ids));
        let num_tokens = golden.ids.len() as i64;
        let block_size = 16;
        let num_blocks = golden.ids.len().div_ceil(block_size);
        let config = decoder.config();
        // The pages lie in the reverse order, after one that is not used.
        let cache = KvCache::new(
            config,
            num_blocks + 1,
            block_size,
            Kind::Float,
            Device::Cpu,
        )
        .unwrap();
        let prompt_len = 13;
        let step = |from: i64, to: i64| {
            let mut batch = StepBatch::default();
            let ids = &golden.ids[from as usize..to as usize];
            let blocks = (1..=num_blocks as i32).rev();
            batch.push_sequence(ids.iter().copied(), from as usize, blocks);
            batch.sample_rows.push((to - from - 1) as i32);
            let ours = decoder.step(&batch, &cache).unwrap();
            let expected = expected.get(to - 1);
            let worst = (ours.get(0) - expected).abs().max().double_value(&[]);
            assert!(worst < 1e-4, "{name}, position {to}: off by {worst}");
        };
        step(0, prompt_len);
        for position in prompt_len..num_tokens {
            step(position, position + 1);
        }
    }
}

/// What is loaded is what is saved, bit for bit, with the configuration as it was.
#[test]
fn a_round_trip_changes_nothing() {
    for (name, case) in &golden().cases {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_folder(from.path(), &case.config, WIDTH, 2);
        let decoder = Decoder::load(from.path(), Device::Cpu, Kind::Float).unwrap();
        decoder.save(to.path()).unwrap();
        let again = Decoder::load(to.path(), Device::Cpu, Kind::Float).unwrap();
        for ((left_name, left), (right_name, right)) in decoder
            .named_parameters()
            .iter()
            .zip(again.named_parameters())
        {
            assert!(
                left_name == right_name && left == right,
                "{name} {left_name}"
            );
        }
        let text = fs_err::read_to_string(to.path().join("config.json")).unwrap();
        let mut saved: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(
            saved.remove("torch_dtype"),
            Some("float32".into()),
            "{name}"
        );
        assert_eq!(saved, case.config, "{name}");
    }
}
