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

use asyncthink_model::{Decoder, KvCache, PackedDecoder, StepBatch};
use asyncthink_torch::{SamplingBatch, SamplingRow};
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
        let cache =
            KvCache::new(config, num_blocks + 1, block_size, Kind::Float, Device::Cpu).unwrap();
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

/// The packed decoder of the CPU kernels computes what a plain pass does, in every family. (Heads are as wide as the kernels want them.)
#[test]
fn packed_decoding_agrees_with_a_plain_pass() {
    let golden = golden();
    let mut num_checked = 0;
    for (name, case) in &golden.cases {
        let dir = tempfile::tempdir().unwrap();
        let mut config = case.config.clone();
        let head_dim = if num_checked % 2 == 0 { 16 } else { 32 };
        config.insert("head_dim".to_owned(), head_dim.into());
        write_folder(dir.path(), &config, WIDTH, 2);
        let decoder = Decoder::load(dir.path(), Device::Cpu, Kind::Float).unwrap();
        assert!(PackedDecoder::supports(decoder.config(), Kind::Float));
        num_checked += 1;
        let expected = tch::no_grad(|| logits(&decoder, &golden.ids)).log_softmax(-1, Kind::Float);
        let mut packed = PackedDecoder::new(decoder.config(), Kind::Float).unwrap();
        packed.pack(&decoder).unwrap();
        let num_tokens = golden.ids.len();
        let mut cache = packed.cache(num_tokens.div_ceil(16) + 1, 16).unwrap();
        let mut from = 0;
        for to in (13..=num_tokens).step_by(7) {
            let mut batch = StepBatch::default();
            let blocks = (1..=to.div_ceil(16) as i32).rev();
            // The order of the blocks must not change from step to step.
            let blocks =
                blocks.map(|block| block + (num_tokens.div_ceil(16) - to.div_ceil(16)) as i32);
            batch.push_sequence(golden.ids[from..to].iter().copied(), from, blocks);
            let mut sampling = SamplingBatch::default();
            for row in 0..to - from {
                batch.sample_rows.push(row as i32);
                let how = SamplingRow {
                    temperature: 1.0,
                    top_k: 0,
                    top_p: 1.0,
                    min_p: 0.0,
                    seed: 5,
                    position: row as u64,
                };
                sampling.push(how, []);
            }
            let sampled = packed.step(&mut cache, &batch, &sampling).unwrap();
            for (row, sampled) in sampled.iter().enumerate() {
                let logprob = expected.double_value(&[(from + row) as i64, sampled.token]);
                let worst = (logprob - f64::from(sampled.logprob)).abs();
                assert!(worst < 1e-4, "{name}, row {}: off by {worst}", from + row);
            }
            from = to;
        }
    }
    assert!(num_checked >= 8, "only {num_checked} families were checked");
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
