//! The output head in chunks: log-probabilities, entropy and gradient with no `[tokens, vocab]` tensor beyond one chunk.
//!
//! The decoder runs once. Its hidden states at the trained positions are cut into chunks; each chunk is detached, sent
//! through the head, turned into a loss and differentiated at once, so its logits are gone before the next chunk starts.
//! The gradients of the chunks then go back through the decoder in one pass.
//!
//! Shape legend: `trained` = tokens with a loss mask of one, `hidden`, `vocab`.

use std::ops::Range;

use asyncthink_algorithms::TokenGradient;
use asyncthink_model::at_temperature;
use asyncthink_torch::backward_with_grad;
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

/// The map from hidden states `[n, hidden]` to f32 logits `[n, vocab]`.
pub type LmHead<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

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
    lm_head: LmHead<'_>,
    hidden: &Tensor,
    targets: &Tensor,
    settings: HeadSettings,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let mut parts = Vec::new();
    for chunk in chunks(hidden.size()[0], settings.chunk_tokens) {
        let (start, len) = (chunk.start, chunk.end - chunk.start);
        let all = log_softmax(
            lm_head,
            &hidden.f_narrow(0, start, len)?,
            settings.temperature,
        )?;
        parts.push(pick(&all, &targets.f_narrow(0, start, len)?)?);
    }
    concatenate(&parts, hidden)
}

/// Computes the loss chunk by chunk and adds its gradient to the parameters of head and decoder.
///
/// `chunk_loss` gets the range of trained tokens of a chunk and their log-probabilities (f32, detached), and returns that chunk's
/// part of the loss with its gradient with respect to them.
///
/// # Shapes
/// `hidden` `[trained, hidden]`, attached to the decoder's graph; `targets` i64 `[trained]`.
///
/// # Errors
/// When libtorch refuses an operation, or `chunk_loss` fails.
pub fn backward(
    lm_head: LmHead<'_>,
    hidden: &Tensor,
    targets: &Tensor,
    settings: HeadSettings,
    chunk_loss: &mut dyn FnMut(Range<i64>, &Tensor) -> Result<TokenGradient>,
) -> Result<HeadOutput> {
    let mut logps = Vec::new();
    let mut entropies = Vec::new();
    let mut gradients = Vec::new();
    let mut losses = Vec::new();
    for chunk in chunks(hidden.size()[0], settings.chunk_tokens) {
        let (start, len) = (chunk.start, chunk.end - chunk.start);
        let leaf = hidden
            .f_narrow(0, start, len)?
            .f_detach()?
            .f_set_requires_grad(true)?;
        let all = log_softmax(lm_head, &leaf, settings.temperature)?;
        let logp = pick(&all, &targets.f_narrow(0, start, len)?)?;
        let detached = logp.f_detach()?;
        let TokenGradient { loss, gradient } = chunk_loss(chunk, &detached)?;
        backward_with_grad(&logp, &gradient)?;
        if settings.entropy {
            entropies.push(entropy(&all.detach())?);
        }
        logps.push(detached);
        losses.push(loss);
        gradients.push(leaf.grad());
    }
    if !gradients.is_empty() {
        backward_with_grad(hidden, &Tensor::f_cat(&gradients, 0)?)?;
    }
    let loss = losses
        .iter()
        .map(|loss| loss.f_double_value(&[]))
        .sum::<Result<f64, _>>()?;
    let entropy = if settings.entropy {
        Some(concatenate(&entropies, hidden)?)
    } else {
        None
    };
    Ok(HeadOutput {
        logp: concatenate(&logps, hidden)?,
        entropy,
        loss,
    })
}

fn chunks(num_trained: i64, chunk_tokens: i64) -> impl Iterator<Item = Range<i64>> {
    let chunk_tokens = chunk_tokens.max(1);
    std::iter::successors(Some(0), move |start| Some(start + chunk_tokens))
        .take_while(move |start| *start < num_trained)
        .map(move |start| start..(start + chunk_tokens).min(num_trained))
}

fn log_softmax(lm_head: LmHead<'_>, hidden: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits = at_temperature(lm_head(hidden)?, temperature)?;
    Ok(logits.f_log_softmax(-1, Kind::Float)?)
}

fn pick(all: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(all
        .f_gather(-1, &targets.f_unsqueeze(-1)?, false)?
        .f_squeeze_dim(-1)?)
}

/// `-sum_v p_v log p_v`.
fn entropy(all: &Tensor) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    Ok(all
        .f_exp()?
        .f_mul(all)?
        .f_sum_dim_intlist(-1, false, Kind::Float)?
        .f_neg()?)
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

    /// Gradients of a small head on a small trunk, for one chunk size.
    fn gradients(chunk_tokens: i64) -> (Tensor, Tensor, Tensor, f64) {
        // No random tensors: other tests of this process share libtorch's generator.
        let wave = |rows: i64, columns: i64, pitch: f64| {
            let index = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu));
            (index * pitch).sin().reshape([rows, columns])
        };
        let input = wave(11, 5, 0.7);
        let trunk = wave(6, 5, 1.3).set_requires_grad(true);
        let head = wave(9, 6, 2.1).set_requires_grad(true);
        let targets = Tensor::arange(11, (Kind::Int64, Device::Cpu)).remainder(9);
        let weights = wave(11, 1, 0.4).abs().flatten(0, -1);
        let hidden = input.linear::<&Tensor>(&trunk, None);
        let lm_head = |hidden: &Tensor| Ok(hidden.f_linear::<&Tensor>(&head, None)?);
        let settings = HeadSettings {
            temperature: 0.7,
            chunk_tokens,
            entropy: true,
        };
        let output = backward(&lm_head, &hidden, &targets, settings, &mut |range, logp| {
            let weights = weights.narrow(0, range.start, range.end - range.start);
            Ok(TokenGradient {
                loss: (logp.neg() * &weights).sum(Kind::Float),
                gradient: weights.neg(),
            })
        })
        .unwrap();
        let scored = score(&lm_head, &hidden, &targets, settings).unwrap();
        assert!(close(&output.logp, &scored, 1e-6));
        assert!(output.entropy.unwrap().ge(0.0).all().int64_value(&[]) == 1);
        (trunk.grad(), head.grad(), output.logp, output.loss)
    }

    #[test]
    fn chunk_size_does_not_change_gradients() {
        let whole = gradients(100);
        for chunk_tokens in [1, 4, 11] {
            let cut = gradients(chunk_tokens);
            assert!(close(&whole.0, &cut.0, 1e-5));
            assert!(close(&whole.1, &cut.1, 1e-5));
            assert!(close(&whole.2, &cut.2, 1e-6));
            assert!((whole.3 - cut.3).abs() < 1e-5);
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
        let output = backward(
            &|h: &Tensor| Ok(h.shallow_clone()),
            &hidden,
            &targets,
            settings,
            &mut |_, logp| {
                Ok(TokenGradient {
                    loss: logp.f_sum(Kind::Float)?,
                    gradient: logp.f_ones_like()?,
                })
            },
        )
        .unwrap();
        assert_eq!(output.logp.size(), [0]);
        assert!(output.loss.abs() < f64::EPSILON);
    }
}
