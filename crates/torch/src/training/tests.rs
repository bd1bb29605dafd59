//! Layer, attention and ends against libtorch's graph in f64.
#![expect(unsafe_code, reason = "chooses the kernels under test")]

use tch::{Device, Kind, Tensor};

use super::*;
use crate::autograd::backward_with_grad;
use crate::cuda_kernels::Kernels;
use crate::ffi;

/// Numbers that look random and are not: other tests share libtorch's generator.
fn wave(shape: &[i64], pitch: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let index = Tensor::arange(count, (Kind::Double, Device::Cpu));
    ((&index * pitch).sin() * 7.3 + (&index * (pitch * 0.37)).cos() * 3.1)
        .sin()
        .reshape(shape)
}

/// Sizes of a layer and its packed batch.
#[derive(Clone, Debug)]
struct Case {
    hidden: i64,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    width: i64,
    has_bias: bool,
    has_head_norm: bool,
    lens: Vec<i64>,
    prefixes: Vec<i64>,
}

fn cases() -> Vec<Case> {
    let case = |[hidden, heads, kv_heads, head_dim, width]: [i64; 5]| Case {
        hidden,
        heads,
        kv_heads,
        head_dim,
        width,
        has_bias: false,
        has_head_norm: false,
        lens: vec![1, 17, 64, 3, 130],
        prefixes: vec![],
    };
    vec![
        case([48, 4, 2, 16, 80]),
        Case {
            has_bias: true,
            ..case([20, 2, 1, 8, 28])
        },
        Case {
            has_head_norm: true,
            lens: vec![200, 49],
            ..case([64, 2, 2, 32, 96])
        },
        Case {
            has_head_norm: true,
            has_bias: true,
            lens: vec![70, 5, 40, 9, 1, 66, 12],
            prefixes: vec![-1, 0, 0, 2, 2, -1, 5],
            ..case([32, 3, 1, 24, 40])
        },
        Case {
            lens: vec![33, 0, 97, 20],
            prefixes: vec![-1, 0, 0, -1],
            ..case([40, 4, 4, 64, 56])
        },
    ]
}

const EPS: f64 = 1e-5;

impl Case {
    fn tokens(&self) -> i64 {
        self.lens.iter().sum()
    }

    fn prefix(&self, segment: usize) -> Option<usize> {
        usize::try_from(self.prefixes.get(segment).copied().unwrap_or(-1)).ok()
    }

    /// Position of each token in its sequence.
    fn positions(&self) -> Vec<i64> {
        let mut ends: Vec<i64> = Vec::new();
        let mut positions = Vec::new();
        for (segment, &len) in self.lens.iter().enumerate() {
            let first = self.prefix(segment).map_or(0, |prefix| ends[prefix]);
            positions.extend(first..first + len);
            ends.push(first + len);
        }
        positions
    }

    fn rotation(&self) -> (Tensor, Tensor) {
        let half = self.head_dim / 2;
        let frequencies = (Tensor::arange(half, (Kind::Double, Device::Cpu)) * -0.4).exp();
        let angles = Tensor::from_slice(&self.positions())
            .to_kind(Kind::Double)
            .outer(&frequencies);
        (angles.cos().unsqueeze(1), angles.sin().unsqueeze(1))
    }

    /// All parameters in f64, with what a layer lacks left out.
    fn parameters(&self) -> Vec<(LayerParameter, Tensor)> {
        use LayerParameter as P;
        let (heads, kv_heads) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let matrix = |rows: i64, columns: i64, pitch| {
            wave(&[rows, columns], pitch) / f64::from(i32::try_from(columns).unwrap()).sqrt()
        };
        let vector = |len: i64, pitch| wave(&[len], pitch) * 0.3;
        let mut all = vec![
            (P::InputNorm, vector(self.hidden, 0.9) + 1.0),
            (P::Query, matrix(heads, self.hidden, 1.1)),
            (P::Key, matrix(kv_heads, self.hidden, 1.3)),
            (P::Value, matrix(kv_heads, self.hidden, 1.7)),
            (P::Output, matrix(self.hidden, heads, 1.9)),
            (P::PostNorm, vector(self.hidden, 2.3) + 1.0),
            (P::Gate, matrix(self.width, self.hidden, 2.9)),
            (P::Up, matrix(self.width, self.hidden, 3.1)),
            (P::Down, matrix(self.hidden, self.width, 3.7)),
        ];
        if self.has_bias {
            all.extend([
                (P::QueryBias, vector(heads, 0.3)),
                (P::KeyBias, vector(kv_heads, 0.5)),
                (P::ValueBias, vector(kv_heads, 0.7)),
                (P::OutputBias, vector(self.hidden, 0.11)),
                (P::GateBias, vector(self.width, 0.13)),
                (P::UpBias, vector(self.width, 0.17)),
                (P::DownBias, vector(self.hidden, 0.19)),
            ]);
        }
        if self.has_head_norm {
            all.extend([
                (P::QueryNorm, vector(self.head_dim, 4.1) + 1.0),
                (P::KeyNorm, vector(self.head_dim, 4.3) + 1.0),
            ]);
        }
        all
    }

    /// The layer by libtorch's operations, differentiable.
    fn plainly(&self, hidden: &Tensor, parameters: &[(LayerParameter, Tensor)]) -> Tensor {
        use LayerParameter as P;
        let find = |which: P| {
            parameters
                .iter()
                .find(|(parameter, _)| *parameter == which)
                .map(|(_, tensor)| tensor)
        };
        let norm = |x: &Tensor, weight: &Tensor| x.rms_norm(weight.size(), Some(weight), EPS);
        let linear = |x: &Tensor, weight: P, bias: P| x.linear(find(weight).unwrap(), find(bias));
        let (cos, sin) = self.rotation();
        let rotate = |x: &Tensor| {
            let half = self.head_dim / 2;
            let (a, b) = (x.narrow(2, 0, half), x.narrow(2, half, half));
            Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin], 2)
        };
        let normed = norm(hidden, find(P::InputNorm).unwrap());
        let heads_of = |x: Tensor| x.unflatten(1, [-1, self.head_dim]);
        let mut query = heads_of(linear(&normed, P::Query, P::QueryBias));
        let mut key = heads_of(linear(&normed, P::Key, P::KeyBias));
        let value = heads_of(linear(&normed, P::Value, P::ValueBias));
        if self.has_head_norm {
            query = norm(&query, find(P::QueryNorm).unwrap());
            key = norm(&key, find(P::KeyNorm).unwrap());
        }
        let attended = self.attend(&rotate(&query), &rotate(&key), &value);
        let hidden = hidden + linear(&attended.flatten(1, 2), P::Output, P::OutputBias);
        let normed = norm(&hidden, find(P::PostNorm).unwrap());
        let gate = linear(&normed, P::Gate, P::GateBias).silu();
        let gated = gate * linear(&normed, P::Up, P::UpBias);
        hidden + linear(&gated, P::Down, P::DownBias)
    }

    /// Attention by the formula.
    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
        let group = self.heads / self.kv_heads;
        let starts: Vec<i64> = self
            .lens
            .iter()
            .scan(0, |end, len| {
                *end += len;
                Some(*end - len)
            })
            .collect();
        let parts: Vec<Tensor> = (0..self.lens.len())
            .map(|segment| {
                let mut chain = vec![segment];
                while let Some(prefix) = self.prefix(chain[chain.len() - 1]) {
                    chain.push(prefix);
                }
                let keys_of = |tensor: &Tensor| {
                    let runs: Vec<Tensor> = chain
                        .iter()
                        .rev()
                        .map(|&run| tensor.narrow(0, starts[run], self.lens[run]))
                        .collect();
                    Tensor::cat(&runs, 0)
                        .repeat_interleave_self_int(group, 1, None)
                        .transpose(0, 1)
                };
                let (keys, values) = (keys_of(key), keys_of(value));
                let rows = query
                    .narrow(0, starts[segment], self.lens[segment])
                    .transpose(0, 1);
                let scale = f64::from(i32::try_from(self.head_dim).unwrap()).sqrt();
                let scores = rows.matmul(&keys.transpose(1, 2)) / scale;
                let (rows, columns) = (self.lens[segment], keys.size()[1]);
                let hidden = Tensor::ones([rows, columns], (Kind::Bool, Device::Cpu))
                    .triu(columns - rows + 1);
                let scores = scores.masked_fill(&hidden, f64::NEG_INFINITY);
                scores
                    .softmax(-1, Kind::Double)
                    .matmul(&values)
                    .transpose(0, 1)
            })
            .collect();
        Tensor::cat(&parts, 0)
    }
}

fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a.to_kind(Kind::Double) - b).norm().double_value(&[]);
    difference / b.norm().double_value(&[]).max(1e-12)
}

/// Runs `test` with the kernels of every instruction set that this processor has.
fn with_all_kernels(test: &dyn Fn()) {
    for most in [0, 1, -1] {
        // SAFETY: sets one number; all kernels give the same values.
        unsafe { ffi::asyncthink_limit_training_kernels(most) };
        test();
    }
}

/// Output and all gradients of a layer of `kind` against those in f64.
fn check_layer(case: &Case, kind: Kind, tolerance: f64) {
    let leaf = |tensor: &Tensor| tensor.detach().copy().set_requires_grad(true);
    // What bf16 can hold, so that both compute with the same numbers.
    let rounded = |tensor: &Tensor| tensor.to_kind(kind).to_kind(Kind::Double);
    let exact: Vec<_> = case
        .parameters()
        .into_iter()
        .map(|(name, tensor)| (name, leaf(&rounded(&tensor))))
        .collect();
    let input = leaf(&rounded(&wave(&[case.tokens(), case.hidden], 0.61)));
    let gradient = rounded(&wave(&[case.tokens(), case.hidden], 0.83));
    let expected = case.plainly(&input, &exact);
    backward_with_grad(&expected, &gradient).unwrap();

    let own: Vec<_> = exact
        .iter()
        .map(|(name, tensor)| (*name, tensor.detach().to_kind(kind).set_requires_grad(true)))
        .collect();
    let mut layer = LayerTensors::new(case.head_dim, EPS);
    for (name, tensor) in &own {
        layer.set(*name, Some(tensor));
    }
    let (cos, sin) = case.rotation();
    let (cos, sin) = (cos.to_kind(kind), sin.to_kind(kind));
    let segments = PackedSegments {
        lens: &case.lens,
        prefixes: &case.prefixes,
        cos: &cos,
        sin: &sin,
    };
    let given = input.detach().to_kind(kind);
    for repeat in 1..=2 {
        let (output, saved) = layer.forward_saving(&given, &segments).unwrap();
        let error = relative_error(&output, &expected);
        assert!(error < tolerance, "{case:?}: output {error}");
        let scored = layer.forward(&given, &segments).unwrap();
        assert!(relative_error(&scored, &output.to_kind(Kind::Double)) < tolerance);
        let of_input = layer
            .backward(saved, &gradient.to_kind(kind), &segments, true)
            .unwrap()
            .unwrap();
        let error = relative_error(&of_input, &input.grad());
        assert!(error < tolerance, "{case:?}: input {error}");
        for ((name, tensor), (_, reference)) in own.iter().zip(&exact) {
            // Gradients add up.
            let error = relative_error(&tensor.grad(), &(reference.grad() * f64::from(repeat)));
            assert!(error < tolerance, "{case:?}: {name:?} {error}");
        }
    }
}

#[test]
fn a_layer_equals_the_graph() {
    with_all_kernels(&|| {
        for case in cases() {
            check_layer(&case, Kind::Float, 2e-6);
        }
    });
}

#[test]
fn a_layer_in_bf16_is_within_its_rounding() {
    for case in cases() {
        check_layer(&case, Kind::BFloat16, 3e-2);
    }
}

/// Norm, rotation and gate by the CUDA kernels, emulated; attention stays that of the CPU.
#[test]
fn a_layer_by_emulated_cuda_kernels_equals_the_graph() {
    Kernels::emulated().unwrap().serve_training();
    for mut case in cases() {
        // Heads that the kernels are compiled for, and fewer tokens: fibers are slow.
        let dim = [16, 32, 64].into_iter().find(|dim| *dim >= case.head_dim);
        case.head_dim = dim.unwrap();
        case.lens.iter_mut().for_each(|len| *len = (*len + 3) / 4);
        check_layer(&case, Kind::Float, 2e-6);
        check_layer(&case, Kind::BFloat16, 3e-2);
    }
    Kernels::end_emulated_training();
}

#[test]
fn frozen_parameters_get_no_gradient() {
    let case = &cases()[0];
    let own: Vec<_> = case
        .parameters()
        .into_iter()
        .map(|(name, tensor)| {
            let is_trained = name == LayerParameter::Up;
            let tensor = tensor.to_kind(Kind::Float).set_requires_grad(is_trained);
            (name, tensor)
        })
        .collect();
    let mut layer = LayerTensors::new(case.head_dim, EPS);
    for (name, tensor) in &own {
        layer.set(*name, Some(tensor));
    }
    let (cos, sin) = case.rotation();
    let (cos, sin) = (cos.to_kind(Kind::Float), sin.to_kind(Kind::Float));
    let segments = PackedSegments {
        lens: &case.lens,
        prefixes: &[],
        cos: &cos,
        sin: &sin,
    };
    let input = wave(&[case.tokens(), case.hidden], 0.61).to_kind(Kind::Float);
    let (output, saved) = layer.forward_saving(&input, &segments).unwrap();
    let of_input = layer.backward(saved, &output, &segments, false).unwrap();
    assert!(of_input.is_none());
    for (name, tensor) in &own {
        assert_eq!(tensor.grad().defined(), *name == LayerParameter::Up);
    }
}

#[test]
fn wrong_tensors_are_refused() {
    let case = &cases()[0];
    let own = case.parameters();
    let mut layer = LayerTensors::new(case.head_dim, EPS);
    let (cos, sin) = case.rotation();
    let (cos, sin) = (cos.to_kind(Kind::Float), sin.to_kind(Kind::Float));
    let input = wave(&[case.tokens(), case.hidden], 0.61).to_kind(Kind::Float);
    let mut segments = PackedSegments {
        lens: &case.lens,
        prefixes: &[],
        cos: &cos,
        sin: &sin,
    };
    let missing = layer.forward(&input, &segments).unwrap_err().to_string();
    assert!(missing.contains("is missing"), "{missing}");
    for (name, tensor) in &own {
        layer.set(*name, Some(tensor));
    }
    let kind = layer.forward(&input, &segments).unwrap_err().to_string();
    assert!(kind.contains("of the type of the hidden states"), "{kind}");
    let own: Vec<_> = own
        .iter()
        .map(|(name, tensor)| (*name, tensor.to_kind(Kind::Float)))
        .collect();
    for (name, tensor) in &own {
        layer.set(*name, Some(tensor));
    }
    let lens = [case.tokens() - 1];
    segments.lens = &lens;
    let sum = layer.forward(&input, &segments).unwrap_err().to_string();
    assert!(sum.contains("the segments have"), "{sum}");
    let lens = [10, case.tokens() - 10];
    (segments.lens, segments.prefixes) = (&lens, &[-1, 1]);
    let later = layer.forward(&input, &segments).unwrap_err().to_string();
    assert!(later.contains("is not after its prefix"), "{later}");
}

#[test]
fn attention_is_differentiable() {
    with_all_kernels(&|| {
        for case in cases() {
            let (tokens, dim) = (case.tokens(), case.head_dim);
            let leaf = |tensor: Tensor, kind| tensor.to_kind(kind).set_requires_grad(true);
            let all = |kind| {
                [
                    (case.heads, 0.9),
                    (case.kv_heads, 1.7),
                    (case.kv_heads, 2.9),
                ]
                .map(|(heads, pitch)| leaf(wave(&[tokens, heads, dim], pitch) * 2.0, kind))
            };
            let (exact, own) = (all(Kind::Double), all(Kind::Float));
            let gradient = wave(&[tokens, case.heads, dim], 0.7);
            let expected = case.attend(&exact[0], &exact[1], &exact[2]);
            backward_with_grad(&expected, &gradient).unwrap();
            let output =
                segment_attention(&own[0], &own[1], &own[2], &case.lens, &case.prefixes).unwrap();
            backward_with_grad(&output, &gradient.to_kind(Kind::Float)).unwrap();
            assert!(relative_error(&output, &expected) < 2e-6, "{case:?}");
            for (own, exact) in own.iter().zip(&exact) {
                let error = relative_error(&own.grad(), &exact.grad());
                assert!(error < 2e-6, "{case:?}: {error}");
            }
        }
    });
}

#[test]
fn head_norm_and_embedding_equal_the_graph() {
    with_all_kernels(&|| {
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::Double, 1e-12)] {
            for vocab in [7, 32, 61] {
                check_ends(vocab, kind, tolerance);
            }
        }
        check_ends(61, Kind::BFloat16, 2e-2);
    });
}

fn check_ends(vocab: i64, kind: Kind, tolerance: f64) {
    let (tokens, width, temperature) = (23, 20, 0.7);
    let rounded = |tensor: Tensor| tensor.to_kind(kind).to_kind(Kind::Double);
    let leaf = |tensor: &Tensor, kind| tensor.to_kind(kind).detach().set_requires_grad(true);
    let values = [
        rounded(wave(&[vocab, width], 0.9)),
        rounded(wave(&[width], 1.3) + 1.5),
        rounded(wave(&[vocab, width], 2.1)),
    ];
    let ids = (Tensor::arange(tokens, (Kind::Int64, Device::Cpu)) * 5).remainder(vocab);
    let targets = (Tensor::arange(tokens, (Kind::Int64, Device::Cpu)) * 3).remainder(vocab);
    let (dlogp, dentropy) = (wave(&[tokens], 0.4), wave(&[tokens], 0.8));

    let exact: Vec<_> = values.iter().map(|one| leaf(one, Kind::Double)).collect();
    let embedded = Tensor::embedding(&exact[0], &ids, -1, false, false);
    let normed = embedded.rms_norm(exact[1].size(), Some(&exact[1]), EPS);
    let logits = normed.linear::<&Tensor>(&exact[2], None) / temperature;
    let all = logits.log_softmax(-1, Kind::Double);
    let logp = all.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    let entropy = -(all.exp() * &all).sum_dim_intlist(1, false, Kind::Double);
    ((&logp * &dlogp).sum(Kind::Double) + (&entropy * &dentropy).sum(Kind::Double)).backward();

    let own: Vec<_> = values.iter().map(|one| leaf(one, kind)).collect();
    let embedded = tch::no_grad(|| Tensor::embedding(&own[0], &ids, -1, false, false));
    let rows = Normed::forward(embedded, &own[1], EPS).unwrap();
    let head = Head {
        weight: &own[2],
        temperature,
    };
    let softmax = head.forward(&rows.output, &targets, true).unwrap();
    let sums = softmax.logp.kind();
    assert!(relative_error(&softmax.logp, &logp) < tolerance);
    assert!(relative_error(softmax.entropy.as_ref().unwrap(), &entropy) < tolerance);
    let (dlogp, dentropy) = (dlogp.to_kind(sums), dentropy.to_kind(sums));
    let of_rows = head
        .backward(&rows.output, &targets, softmax, &dlogp, Some(&dentropy))
        .unwrap();
    let of_input = rows.backward(&own[1], &of_rows).unwrap();
    embedding_backward(&own[0], &ids, &of_input).unwrap();
    for (own, exact) in own.iter().zip(&exact) {
        let error = relative_error(&own.grad(), &exact.grad());
        assert!(error < tolerance, "{vocab} {kind:?}: {error}");
    }
    let outside = head
        .forward(&rows.output, &(&targets + vocab), false)
        .unwrap_err()
        .to_string();
    assert!(outside.contains("is not in the vocabulary"), "{outside}");
}

/// Log-probabilities of all tokens, from a head that changes nothing.
fn log_softmax(logits: &[f32], temperature: f64) -> Vec<f32> {
    let count = i64::try_from(logits.len()).unwrap();
    let weight = Tensor::eye(count, (Kind::Float, Device::Cpu));
    let head = Head {
        weight: &weight,
        temperature,
    };
    let hidden = Tensor::from_slice(logits)
        .unsqueeze(0)
        .repeat([count, 1])
        .contiguous();
    let targets = Tensor::arange(count, (Kind::Int64, Device::Cpu));
    let softmax = head.forward(&hidden, &targets, false).unwrap();
    Vec::try_from(softmax.logp).unwrap()
}

#[test]
fn the_smallest_temperatures_take_the_likeliest_token() {
    for temperature in [9e-7, 1e-20, 1e-37, 1.2e-38] {
        let all = log_softmax(&[3.0, -400.0, 3.0, 2.0], temperature);
        assert!(all.iter().all(|logp| logp.is_finite()), "{all:?}");
        let half = -std::f32::consts::LN_2;
        assert!((all[0] - half).abs() < 1e-6 && (all[2] - half).abs() < 1e-6);
        assert!(all[1] < -1e5 && all[3] < -1e5, "{all:?}");
    }
}

#[test]
fn a_logit_that_is_not_finite_gives_nan() {
    with_all_kernels(&|| {
        for temperature in [1e-30, 1.0] {
            assert!(log_softmax(&[1.0, f32::NAN], temperature)[0].is_nan());
            assert!(log_softmax(&[1.0, f32::INFINITY], temperature)[0].is_nan());
        }
    });
}

#[test]
fn both_ways_of_dividing_agree() {
    let logits = [1.0e-6, 3.0e-6, -2.0e-6];
    let (a, b) = (
        log_softmax(&logits, 1e-6),
        log_softmax(&logits, 0.999_999e-6),
    );
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn gradients_at_a_small_temperature_are_numbers() {
    let weight = Tensor::eye(3, (Kind::Float, Device::Cpu));
    let head = Head {
        weight: &weight,
        temperature: 1e-37,
    };
    let logits = Tensor::from_slice(&[3.0_f32, 1.0, -5.0]).unsqueeze(0);
    let target = Tensor::from_slice(&[0_i64]);
    let softmax = head.forward(&logits, &target, false).unwrap();
    let one = Tensor::from_slice(&[1.0_f32]);
    let gradient = head
        .backward(&logits, &target, softmax, &one, None)
        .unwrap();
    assert_eq!(Vec::<f32>::try_from(gradient.squeeze()).unwrap(), [0.0; 3]);
}
