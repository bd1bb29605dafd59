//! The output head in chunks: log-probabilities, entropy and gradient with no `[tokens, vocab]` tensor beyond one chunk.
//!
//! The decoder runs once. Its hidden states at the trained positions are cut into chunks; each chunk is sent through the head, turned
//! into a loss and differentiated at once, in the buffer of its logits, so that they are gone before the next chunk starts. The
//! gradient of the head's weight is added up in place. The gradients of the chunks then go back through the decoder in one pass.
//!
//! Shape legend: `trained` = tokens with a loss mask of one, `hidden`, `vocab`.

use std::ops::Range;

use asyncthink_algorithms::TokenGradient;
use asyncthink_torch::Head;
use tch::{Kind, Tensor};

use crate::error::Result;

/// Most tokens per chunk; what is saved by larger chunks is noise.
const MAX_CHUNK_TOKENS: i64 = 4096;

/// Most logits that exist at a time: 256 MiB in f32, and as much again for their softmax. At a vocabulary of 150,000 that is
/// 440 tokens, where the head's matrix product runs at full speed.
const MAX_CHUNK_LOGITS: i64 = 1 << 26;

/// How many tokens' logits may exist at a time, at a vocabulary of this size.
pub fn chunk_tokens(vocab_size: i64) -> i64 {
    (MAX_CHUNK_LOGITS / vocab_size.max(1)).clamp(1, MAX_CHUNK_TOKENS)
}

/// What the head needs to know besides hidden states.
#[derive(Clone, Copy, Debug)]
pub struct HeadSettings {
    /// Logits are divided by this before the softmax, as the sampler did.
    pub temperature: f64,
    /// Most tokens whose logits exist at a time.
    pub chunk_tokens: i64,
    /// Whether to compute the entropy of each token's distribution.
    pub entropy: bool,
}

/// Detached per-token figures of one pass.
#[derive(Debug)]
pub struct HeadOutput {
    /// Log-probabilities of the targets, f32 `[trained]`.
    pub logp: Tensor,
    /// Entropies in nats, f32 `[trained]`, if asked for.
    pub entropy: Option<Tensor>,
    /// Sum of the chunk losses.
    pub loss: f64,
}

/// Log-probabilities of `targets`, without gradients.
///
/// # Shapes
/// `hidden` `[trained, hidden]`, `targets` i64 `[trained]`; returns f32 `[trained]`.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn score(
    head: Head<'_>,
    hidden: &Tensor,
    targets: &Tensor,
    chunk_tokens: i64,
) -> Result<Tensor> {
    let mut parts = Vec::new();
    for chunk in chunks(hidden.size()[0], chunk_tokens) {
        let (start, len) = (chunk.start, chunk.end - chunk.start);
        let (hidden, targets) = (
            hidden.f_narrow(0, start, len)?,
            targets.f_narrow(0, start, len)?,
        );
        parts.push(head.forward(&hidden, &targets, false)?.logp);
    }
    concatenate(&parts, hidden)
}

/// Computes the loss chunk by chunk, adds the gradient of the head's weight to its own, and returns that of `hidden` with what was
/// measured.
///
/// `chunk_loss` gets the range of trained tokens of a chunk and their log-probabilities (f32), and returns that chunk's
/// part of the loss with its gradient with respect to them. `entropy_weights`, where given, add the entropies times these weights to the
/// loss.
///
/// # Shapes
/// `hidden` `[trained, hidden]`, as is the gradient; `targets` i64 `[trained]`; `entropy_weights` f32 `[trained]`.
///
/// # Errors
/// When libtorch refuses an operation, or `chunk_loss` fails.
pub fn backward(
    head: Head<'_>,
    hidden: &Tensor,
    targets: &Tensor,
    settings: HeadSettings,
    entropy_weights: Option<&Tensor>,
    chunk_loss: &mut dyn FnMut(Range<i64>, &Tensor) -> Result<TokenGradient>,
) -> Result<(Tensor, HeadOutput)> {
    let mut logps = Vec::new();
    let mut entropies = Vec::new();
    let mut gradients = Vec::new();
    let mut losses = Vec::new();
    for chunk in chunks(hidden.size()[0], settings.chunk_tokens) {
        let (start, len) = (chunk.start, chunk.end - chunk.start);
        let (hidden, targets) = (
            hidden.f_narrow(0, start, len)?,
            targets.f_narrow(0, start, len)?,
        );
        let wants_entropy = settings.entropy || entropy_weights.is_some();
        let softmax = head.forward(&hidden, &targets, wants_entropy)?;
        let logp = softmax.logp.shallow_clone();
        let TokenGradient { mut loss, gradient } = chunk_loss(chunk, &logp)?;
        let entropy_weights = entropy_weights
            .map(|weights| weights.f_narrow(0, start, len))
            .transpose()?;
        if let Some(entropy) = &softmax.entropy {
            if let Some(weights) = &entropy_weights {
                loss = loss.f_add(&entropy.f_mul(weights)?.f_sum(Kind::Float)?)?;
            }
            entropies.push(entropy.shallow_clone());
        }
        let gradient = gradient.f_contiguous()?;
        let of_entropy = entropy_weights.as_ref();
        gradients.push(head.backward(&hidden, &targets, softmax, &gradient, of_entropy)?);
        logps.push(logp);
        losses.push(loss);
    }
    let gradient = if gradients.is_empty() {
        hidden.f_zeros_like()?
    } else {
        Tensor::f_cat(&gradients, 0)?
    };
    let loss = losses
        .iter()
        .map(|loss| loss.f_double_value(&[]))
        .sum::<Result<f64, _>>()?;
    let entropy = if settings.entropy {
        Some(concatenate(&entropies, hidden)?)
    } else {
        None
    };
    let output = HeadOutput {
        logp: concatenate(&logps, hidden)?,
        entropy,
        loss,
    };
    Ok((gradient, output))
}

fn chunks(num_trained: i64, chunk_tokens: i64) -> impl Iterator<Item = Range<i64>> {
    let chunk_tokens = chunk_tokens.max(1);
    std::iter::successors(Some(0), move |start| Some(start + chunk_tokens))
        .take_while(move |start| *start < num_trained)
        .map(move |start| start..(start + chunk_tokens).min(num_trained))
}

fn concatenate(parts: &[Tensor], like: &Tensor) -> Result<Tensor> {
    if parts.is_empty() {
        return Ok(Tensor::f_zeros([0], (Kind::Float, like.device()))?);
    }
    Ok(Tensor::f_cat(parts, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> bool {
        (a - b).abs().max().double_value(&[]) <= tolerance
    }

    /// Gradients of hidden states and head, log-probabilities and loss, for one chunk size.
    fn gradients(chunk_tokens: i64, with_entropy: bool) -> (Tensor, Tensor, Tensor, f64) {
        // No random tensors: other tests of this process share libtorch's generator.
        let wave = |rows: i64, columns: i64, pitch: f64| {
            let index = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu));
            (index * pitch).sin().reshape([rows, columns])
        };
        let hidden = wave(11, 6, 0.7);
        let weight = wave(9, 6, 2.1).set_requires_grad(true);
        let targets = Tensor::arange(11, (Kind::Int64, Device::Cpu)).remainder(9);
        let weights = wave(11, 1, 0.4).abs().flatten(0, -1);
        let settings = HeadSettings {
            temperature: 0.7,
            chunk_tokens,
            entropy: true,
        };
        let head = Head {
            weight: &weight,
            temperature: settings.temperature,
        };
        let entropy_weights = wave(11, 1, 0.9).flatten(0, -1);
        let entropy_weights = with_entropy.then_some(&entropy_weights);
        let (gradient, output) = backward(
            head,
            &hidden,
            &targets,
            settings,
            entropy_weights,
            &mut |range, logp| {
                let weights = weights.narrow(0, range.start, range.end - range.start);
                Ok(TokenGradient {
                    loss: (logp.neg() * &weights).sum(Kind::Float),
                    gradient: weights.neg(),
                })
            },
        )
        .unwrap();
        let scored = score(head, &hidden, &targets, chunk_tokens).unwrap();
        assert!(close(&output.logp, &scored, 1e-6));
        assert!(output.entropy.unwrap().ge(0.0).all().int64_value(&[]) == 1);
        (gradient, weight.grad(), output.logp, output.loss)
    }

    #[test]
    fn chunk_size_does_not_change_gradients() {
        let plain = gradients(100, false);
        for with_entropy in [false, true] {
            let whole = gradients(100, with_entropy);
            for chunk_tokens in [1, 4, 11] {
                let cut = gradients(chunk_tokens, with_entropy);
                assert!(close(&whole.0, &cut.0, 1e-5));
                assert!(close(&whole.1, &cut.1, 1e-5));
                assert!(close(&whole.2, &cut.2, 1e-6));
                assert!((whole.3 - cut.3).abs() < 1e-5);
            }
            assert_eq!(with_entropy, !close(&whole.0, &plain.0, 1e-2));
        }
    }

    #[test]
    fn logits_of_a_chunk_are_bounded() {
        for (vocab_size, expected) in [
            (29, MAX_CHUNK_TOKENS),
            (32_000, 2097),
            (151_936, 441),
            (1 << 30, 1),
        ] {
            assert_eq!(chunk_tokens(vocab_size), expected);
        }
    }

    #[test]
    fn no_trained_tokens_is_no_error() {
        let hidden = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu));
        let targets = Tensor::zeros([0], (Kind::Int64, Device::Cpu));
        let settings = HeadSettings {
            temperature: 1.0,
            chunk_tokens: 8,
            entropy: true,
        };
        let weight = Tensor::ones([3, 4], (Kind::Float, Device::Cpu));
        let head = Head {
            weight: &weight,
            temperature: 1.0,
        };
        let (gradient, output) =
            backward(head, &hidden, &targets, settings, None, &mut |_, logp| {
                Ok(TokenGradient {
                    loss: logp.f_sum(Kind::Float)?,
                    gradient: logp.f_ones_like()?,
                })
            })
            .unwrap();
        assert_eq!(gradient.size(), [0, 4]);
        assert_eq!(output.logp.size(), [0]);
        assert!(output.loss.abs() < f64::EPSILON);
    }
}
