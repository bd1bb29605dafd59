//! The loss of a large vocabulary takes the memory of one chunk, however many tokens there are. A program of its own, whose peak
//! nothing else raises.

#![allow(clippy::unwrap_used, reason = "a test")]

use asyncthink_algorithms::TokenGradient;
use asyncthink_gradient::head::{HeadSettings, backward, chunk_tokens};
use asyncthink_torch::{Head, allocated_bytes, peak_bytes, reset_peak_memory};
use tch::{Device, Kind, Tensor};

const VOCAB_SIZE: i64 = 151_936;
const HIDDEN_SIZE: i64 = 32;
const NUM_TOKENS: i64 = 4096;

#[test]
fn a_large_vocabulary_takes_the_memory_of_a_chunk() {
    let options = (Kind::Float, Device::Cpu);
    let weight = Tensor::ones([VOCAB_SIZE, HIDDEN_SIZE], options).set_requires_grad(true);
    let head = Head {
        weight: &weight,
        temperature: 1.0,
    };
    let hidden = Tensor::ones([NUM_TOKENS, HIDDEN_SIZE], options);
    let targets = Tensor::arange(NUM_TOKENS, (Kind::Int64, Device::Cpu));
    let settings = HeadSettings {
        temperature: 1.0,
        chunk_tokens: chunk_tokens(VOCAB_SIZE),
        entropy: true,
    };
    let run = |num_tokens: i64| {
        let (hidden, targets) = (
            hidden.narrow(0, 0, num_tokens),
            targets.narrow(0, 0, num_tokens),
        );
        let (_, output) = backward(head, &hidden, &targets, settings, None, &mut |_, logp| {
            Ok(TokenGradient {
                loss: logp.f_sum(Kind::Float)?,
                gradient: logp.f_ones_like()?,
            })
        })
        .unwrap();
        // Every token is as likely as every other.
        let expected = -f64::from(151_936_u32).ln();
        assert!((output.logp.mean(Kind::Double).double_value(&[]) - expected).abs() < 1e-4);
    };
    // The gradient of the weight, and what libtorch allocates once.
    run(1);
    reset_peak_memory(Device::Cpu);
    let (Some(before), Some(_)) = (allocated_bytes(Device::Cpu), peak_bytes(Device::Cpu)) else {
        return;
    };
    run(NUM_TOKENS);
    let taken = peak_bytes(Device::Cpu).unwrap().saturating_sub(before);
    assert!(taken > 100_000_000, "{taken} bytes: nothing was measured");
    assert!(taken < 600_000_000, "{taken} bytes");
}
