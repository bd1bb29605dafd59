//! Model folders whose weights follow from names, as `scripts/golden/family_logits.py` makes them.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::path::Path;

use asyncthink_model::{Decoder, ModelConfig, Segments};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value};
use tch::Tensor;

/// CRC-32 as zlib computes it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Width of the noise in f32 weights.
pub const WIDTH: f64 = 1.2;

/// Width of the noise in weights that are rounded to bf16.
pub const BF16_WIDTH: f64 = 0.25;

/// The weights of the script, from name and index.
pub fn weight(name: &str, count: i64, width: f64) -> Vec<f32> {
    let (start, is_norm) = (crc32(name.as_bytes()), name.ends_with("norm.weight"));
    (0..count as u32)
        .map(|index| {
            let mixed = index.wrapping_add(start).wrapping_mul(2_654_435_761);
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519);
            let noise = (f64::from(mixed) / 2f64.powi(32) - 0.5) * width;
            (if is_norm { 1.0 + noise } else { noise }) as f32
        })
        .collect()
}

/// Writes a model folder of the case, in one file or in two shards with an index.
pub fn write_folder(dir: &Path, config: &Map<String, Value>, width: f64, num_shards: usize) {
    fs_err::write(
        dir.join("config.json"),
        serde_json::to_string(config).unwrap(),
    )
    .unwrap();
    let shapes = ModelConfig::from_dir(dir).unwrap().parameter_shapes();
    let mut weight_map = BTreeMap::new();
    for (shard, part) in shapes.chunks(shapes.len().div_ceil(num_shards)).enumerate() {
        let file = if num_shards == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{num_shards:05}.safetensors", shard + 1)
        };
        write_tensors(&dir.join(&file), part, width);
        weight_map.extend(part.iter().map(|(name, _)| (name.clone(), file.clone())));
    }
    if num_shards > 1 {
        let index = serde_json::json!({ "weight_map": weight_map });
        let path = dir.join("model.safetensors.index.json");
        fs_err::write(path, index.to_string()).unwrap();
    }
}

pub fn logits(decoder: &Decoder, ids: &[i64]) -> Tensor {
    let hidden = decoder
        .hidden_packed(
            &Tensor::from_slice(ids),
            &Segments::separate(&[ids.len() as i64]).unwrap(),
        )
        .unwrap();
    decoder.lm_head(&hidden).unwrap()
}

/// Writes one weight file with tensors by the formula.
pub fn write_tensors(path: &Path, shapes: &[(String, Vec<i64>)], width: f64) {
    let named: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| (name.clone(), name.clone(), shape.clone()))
        .collect();
    write_named_tensors(path, &named, width);
}

/// Folder in which each first tensor has the values of the second.
pub fn write_named_tensors(path: &Path, tensors: &[(String, String, Vec<i64>)], width: f64) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, values_of, shape)| {
            let values = weight(values_of, shape.iter().product(), width);
            values.into_iter().flat_map(f32::to_le_bytes).collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, _, shape), bytes)| {
        let shape = shape.iter().map(|&size| size as usize).collect();
        let view = TensorView::new(Dtype::F32, shape, bytes).unwrap();
        (name.clone(), view)
    });
    fs_err::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
