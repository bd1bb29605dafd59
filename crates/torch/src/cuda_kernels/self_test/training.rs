//! A decoder layer of training, forward and backward: norm, rotation, gate and flash attention between the products.

use tch::{Device, Kind, Tensor};

use super::check::KernelCheck;
use super::numbers::Numbers;
use crate::error::{OpContext, Result};
use crate::training::{LayerParameter, LayerTensors, PackedSegments};

const OP: &str = "self_test";
const HIDDEN: i64 = 256;
const HEADS: i64 = 4;
const KV_HEADS: i64 = 2;
const WIDTH: i64 = 384;
const EPS: f64 = 1e-6;

/// Segments of their own, and such that continue others.
const LENS: [i64; 5] = [70, 33, 150, 1, 40];
const PREFIXES: [i64; 5] = [-1, 0, -1, 2, 1];

/// Norm of the difference over the norm that rounding to bf16 explains.
const BOUND: f64 = 3e-2;

/// Compares a layer in bf16 on `device` with one in f32 on the CPU, which computes with the same rounded numbers.
pub(in crate::cuda_kernels) fn run(device: Device) -> Result<Vec<KernelCheck>> {
    [(64, false), (128, true)]
        .into_iter()
        .map(|(head_dim, norms_heads)| {
            let name = format!("training_layer head_dim {head_dim} bf16");
            if !LayerTensors::serves(device, Kind::BFloat16, head_dim) {
                return Ok(KernelCheck {
                    name: format!("{name}: not served"),
                    difference: f64::INFINITY,
                    bound: BOUND,
                });
            }
            let parameters = parameters(head_dim, norms_heads)?;
            let got = pass(device, Kind::BFloat16, head_dim, &parameters)?;
            let expected = pass(Device::Cpu, Kind::Float, head_dim, &parameters)?;
            let mut largest = 0.0_f64;
            for (got, expected) in got.iter().zip(&expected) {
                let norm = |tensor: &Tensor| tensor.f_norm()?.f_double_value(&[]);
                let apart = norm(&got.f_sub(expected).op(OP)?).op(OP)?;
                let relative = apart / norm(expected).op(OP)?.max(f64::MIN_POSITIVE);
                // `max` would pass over what is not a number.
                largest = if relative.is_nan() {
                    f64::INFINITY
                } else {
                    largest.max(relative)
                };
            }
            Ok(KernelCheck {
                name,
                difference: largest,
                bound: BOUND,
            })
        })
        .collect()
}

/// A tensor of numbers that bf16 holds, in f32.
fn numbers(seed: u64, shape: &[i64], scale: f64, offset: f64) -> Result<Tensor> {
    let count = shape.iter().product::<i64>();
    let values = Numbers::new(seed).values(usize::try_from(count).unwrap_or(0), scale);
    let values = Tensor::f_from_slice(&values)
        .and_then(|values| values.f_add_scalar(offset))
        .and_then(|values| values.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float))
        .op(OP)?;
    values.f_reshape(shape).op(OP)
}

fn parameters(head_dim: i64, norms_heads: bool) -> Result<Vec<(LayerParameter, Tensor)>> {
    use LayerParameter as P;
    let (heads, kv_heads) = (HEADS * head_dim, KV_HEADS * head_dim);
    let shapes = [
        (P::Query, [heads, HIDDEN]),
        (P::Key, [kv_heads, HIDDEN]),
        (P::Value, [kv_heads, HIDDEN]),
        (P::Output, [HIDDEN, heads]),
        (P::Gate, [WIDTH, HIDDEN]),
        (P::Up, [WIDTH, HIDDEN]),
        (P::Down, [HIDDEN, WIDTH]),
    ];
    let mut gains = vec![(P::InputNorm, HIDDEN), (P::PostNorm, HIDDEN)];
    if norms_heads {
        gains.extend([(P::QueryNorm, head_dim), (P::KeyNorm, head_dim)]);
    }
    let matrices = shapes
        .iter()
        .map(|(name, shape)| Ok((*name, numbers(*name as u64, shape, 0.1, 0.0)?)));
    let vectors = gains
        .iter()
        .map(|(name, len)| Ok((*name, numbers(*name as u64, &[*len], 0.3, 1.0)?)));
    matrices.chain(vectors).collect()
}

/// Output, gradient of the input, and gradients of the parameters, in f64 on the CPU.
fn pass(
    device: Device,
    kind: Kind,
    head_dim: i64,
    parameters: &[(LayerParameter, Tensor)],
) -> Result<Vec<Tensor>> {
    let there = |tensor: &Tensor| tensor.f_to_kind(kind)?.f_to_device(device);
    let own = parameters
        .iter()
        .map(|(name, tensor)| Ok((*name, there(tensor)?.f_set_requires_grad(true)?)))
        .collect::<Result<Vec<_>, tch::TchError>>()
        .op(OP)?;
    let mut layer = LayerTensors::new(head_dim, EPS);
    for (name, tensor) in &own {
        layer.set(*name, Some(tensor));
    }
    let tokens = LENS.iter().sum();
    let turn = |seed| there(&numbers(seed, &[tokens, 1, head_dim / 2], 1.0, 0.0)?).op(OP);
    let (cos, sin) = (turn(101)?, turn(102)?);
    let segments = PackedSegments {
        lens: &LENS,
        prefixes: &PREFIXES,
        cos: &cos,
        sin: &sin,
    };
    let input = there(&numbers(103, &[tokens, HIDDEN], 1.0, 0.0)?).op(OP)?;
    let gradient = there(&numbers(104, &[tokens, HIDDEN], 1.0, 0.0)?).op(OP)?;
    let (output, saved) = layer.forward_saving(&input, &segments)?;
    let of_input = layer.backward(saved, &gradient, &segments, true)?;
    let gradients = own.iter().map(|(_, tensor)| tensor.grad());
    std::iter::once(output)
        .chain(of_input)
        .chain(gradients)
        .map(|tensor| tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double))
        .collect::<Result<_, _>>()
        .op(OP)
}
