//! Sequences that share their beginning as a segment give what each of them gives alone.

use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Segment, Segments};
use tch::{Device, Kind, Tensor};

fn decoder() -> Decoder {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: 37,
        hidden_size: 24,
        intermediate_size: 40,
        num_layers: 3,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 8,
        rope_theta: 10_000.0,
        max_position_embeddings: 64,
        tie_word_embeddings: true,
        eos_token_id: 0,
    });
    let mut decoder =
        Decoder::init(&config.expect("a configuration"), Device::Cpu, 11).expect("a decoder");
    decoder.set_requires_grad(true);
    decoder
}

fn segment(len: i64, prefix: Option<usize>) -> Segment {
    Segment { len, prefix }
}

/// Gradients of all parameters of a weighted sum of hidden states.
fn gradients(decoder: &mut Decoder, loss: &Tensor) -> Vec<Tensor> {
    for (_, parameter) in decoder.named_parameters() {
        if parameter.grad().defined() {
            let _ = parameter.grad().zero_();
        }
    }
    loss.backward();
    let parameters = decoder.named_parameters().iter();
    parameters.map(|(_, tensor)| tensor.grad().copy()).collect()
}

#[test]
fn a_tree_of_segments_equals_its_sequences_apart() {
    let mut decoder = decoder();
    // A head of five tokens, two prompts that continue it, rows of each; a row that continues the head; one that shares nothing.
    let segments = Segments::new(vec![
        segment(5, None),
        segment(4, Some(0)),
        segment(6, Some(1)),
        segment(1, Some(1)),
        segment(7, None),
        segment(3, Some(0)),
        segment(2, Some(5)),
        segment(8, Some(5)),
        segment(9, Some(0)),
    ])
    .unwrap();
    let num_tokens = segments.num_tokens();
    let ids = Tensor::arange(num_tokens, (Kind::Int64, Device::Cpu)) * 7;
    let ids = ids.remainder(37);
    let weights = Tensor::arange(num_tokens * 24, (Kind::Float, Device::Cpu));
    let weights = (weights * 0.7).sin().reshape([num_tokens, 24]);
    let hidden = decoder.hidden_packed(&ids, &segments).unwrap();
    let shared = gradients(&mut decoder, &(&hidden * &weights).sum(Kind::Float));

    // Every segment with its prefixes as a sequence of its own, of which the segment's tokens alone count.
    let mut loss = Tensor::from(0.0_f32);
    for index in 0..segments.len() {
        let part = |tensor: &Tensor, index: usize| {
            let range = segments.range(index);
            tensor.narrow(0, range.start, range.end - range.start)
        };
        let chain: Vec<Tensor> = segments
            .chain(index)
            .iter()
            .map(|&one| part(&ids, one))
            .collect();
        let sequence = Tensor::cat(&chain, 0);
        let separate = Segments::separate(&[sequence.size1().unwrap()]).unwrap();
        let alone = decoder.hidden_packed(&sequence, &separate).unwrap();
        let len = segments.as_slice()[index].len;
        let alone = alone.narrow(0, segments.first_position(index), len);
        let difference = (part(&hidden, index) - &alone)
            .abs()
            .max()
            .double_value(&[]);
        assert!(difference < 1e-5, "segment {index}: {difference}");
        loss += (alone * part(&weights, index)).sum(Kind::Float);
    }
    let apart = gradients(&mut decoder, &loss);
    for ((shared, apart), (name, _)) in shared.iter().zip(&apart).zip(decoder.named_parameters()) {
        let scale = apart.abs().max().double_value(&[]);
        let difference = (shared - apart).abs().max().double_value(&[]);
        assert!(
            difference <= 1e-5 * scale,
            "{name}: {difference} of {scale}"
        );
    }
}
