//! Embedding, final norm and output head.
#![expect(unsafe_code, reason = "calls the C++ side")]

use std::ptr::null_mut;

use tch::{Kind, Tensor};

use super::pointer;
use crate::autograd::gradient_of;
use crate::error::{Error, Result};
use crate::ffi;

/// Rows that were normed: `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Debug)]
pub struct Normed {
    input: Tensor,
    /// The normed rows, as the input.
    pub output: Tensor,
    rstd: Tensor,
}

impl Normed {
    /// Norms rows `input` `[rows, width]` by `weight` `[width]`.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward(input: Tensor, weight: &Tensor, eps: f64) -> Result<Self> {
        const OP: &str = "norm_forward";
        check_rows(OP, &input, weight, input.size().get(1).copied())?;
        let (mut output, mut rstd) = (null_mut(), null_mut());
        // SAFETY: the tensors live across the call, their shapes fit; on success both results are tensors that nobody else owns.
        unsafe {
            let message = ffi::asyncthink_norm_forward(
                input.as_ptr(),
                weight.as_ptr(),
                eps,
                &raw mut output,
                &raw mut rstd,
            );
            ffi::check(OP, message)?;
            Ok(Self {
                input,
                output: Tensor::from_ptr(output),
                rstd: Tensor::from_ptr(rstd),
            })
        }
    }

    /// The gradient of the input, from that of the output; adds the gradient of `weight` to its own if it is trained.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn backward(&self, weight: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        const OP: &str = "norm_backward";
        if gradient.size() != self.input.size() {
            return Err(Error::torch(OP, "the gradient must be like the rows"));
        }
        check_rows(OP, &self.input, weight, self.input.size().get(1).copied())?;
        let of_weight = gradient_of(weight)?;
        let mut input = null_mut();
        // SAFETY: as in `forward`.
        unsafe {
            let message = ffi::asyncthink_norm_backward(
                self.input.as_ptr(),
                weight.as_ptr(),
                self.rstd.as_ptr(),
                gradient.as_ptr(),
                pointer(of_weight.as_ref()),
                &raw mut input,
            );
            ffi::check(OP, message)?;
            Ok(Tensor::from_ptr(input))
        }
    }
}

/// An output head: `weight` `[vocab, hidden]`, and the temperature that logits are divided by.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The weight.
    pub weight: &'a Tensor,
    /// The temperature.
    pub temperature: f64,
}

/// Softmax of a chunk of tokens.
#[derive(Debug)]
pub struct HeadLogits {
    /// At the temperature, f32 `[tokens, vocab]`.
    logits: Tensor,
    /// Log-probabilities of the targets, f32 `[tokens]`.
    pub logp: Tensor,
    log_sum: Tensor,
    /// Entropies in nats, f32 `[tokens]`, if asked for.
    pub entropy: Option<Tensor>,
}

impl Head<'_> {
    /// Logits and softmax of `hidden` `[tokens, hidden]`; `targets` i64 `[tokens]`.
    ///
    /// # Errors
    /// For other shapes, or a target that is not in the vocabulary.
    pub fn forward(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        wants_entropy: bool,
    ) -> Result<HeadLogits> {
        const OP: &str = "head_forward";
        check_head(OP, self.weight, hidden, targets)?;
        let (mut logits, mut logp, mut log_sum, mut entropy) =
            (null_mut(), null_mut(), null_mut(), null_mut());
        let entropy_place = if wants_entropy {
            &raw mut entropy
        } else {
            null_mut()
        };
        // SAFETY: the tensors live across the call, which checks ids on the CPU; on success all results are tensors that nobody
        // else owns.
        unsafe {
            let message = ffi::asyncthink_head_forward(
                hidden.as_ptr(),
                self.weight.as_ptr(),
                targets.as_ptr(),
                self.temperature,
                &raw mut logits,
                &raw mut logp,
                &raw mut log_sum,
                entropy_place,
            );
            ffi::check(OP, message)?;
            Ok(HeadLogits {
                logits: Tensor::from_ptr(logits),
                logp: Tensor::from_ptr(logp),
                log_sum: Tensor::from_ptr(log_sum),
                entropy: wants_entropy.then(|| Tensor::from_ptr(entropy)),
            })
        }
    }

    /// The gradient of `hidden`, from those of the log-probabilities f32 `[tokens]` and, where given, of the entropies; adds the
    /// gradient of the weight to its own if it is trained.
    ///
    /// ```text
    /// dL/dlogits = (dlogp (onehot(target) - p) - dentropy p (log p + entropy)) / temperature
    /// ```
    ///
    /// # Errors
    /// As [`Self::forward`]; also for the gradient of an entropy that was not asked for.
    pub fn backward(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        softmax: HeadLogits,
        dlogp: &Tensor,
        dentropy: Option<&Tensor>,
    ) -> Result<Tensor> {
        const OP: &str = "head_backward";
        check_head(OP, self.weight, hidden, targets)?;
        let HeadLogits {
            logits,
            log_sum,
            entropy,
            ..
        } = softmax;
        if logits.size()[0] != hidden.size()[0]
            || [Some(dlogp), dentropy].into_iter().flatten().any(|given| {
                given.size() != log_sum.size()
                    || given.kind() != log_sum.kind()
                    || !given.is_contiguous()
            })
        {
            return Err(Error::torch(
                OP,
                "gradients must be f32, one for each token of the logits",
            ));
        }
        let of_weight = gradient_of(self.weight)?;
        let mut gradient = null_mut();
        // SAFETY: as in `forward`.
        unsafe {
            let message = ffi::asyncthink_head_backward(
                hidden.as_ptr(),
                self.weight.as_ptr(),
                logits.as_ptr(),
                targets.as_ptr(),
                log_sum.as_ptr(),
                pointer(entropy.as_ref()),
                dlogp.as_ptr(),
                pointer(dentropy),
                self.temperature,
                pointer(of_weight.as_ref()),
                &raw mut gradient,
            );
            ffi::check(OP, message)?;
            Ok(Tensor::from_ptr(gradient))
        }
    }
}

/// Adds rows `gradient` `[tokens, hidden]` to those of the embedding's gradient that `ids` i64 `[tokens]` name, if it is trained.
///
/// # Errors
/// For other shapes, or an id that is not in the vocabulary.
pub fn embedding_backward(embedding: &Tensor, ids: &Tensor, gradient: &Tensor) -> Result<()> {
    const OP: &str = "embedding_backward";
    let Some(of_embedding) = gradient_of(embedding)? else {
        return Ok(());
    };
    check_rows(OP, gradient, ids, gradient.size().first().copied())?;
    if ids.kind() != Kind::Int64 || gradient.size().get(1) != embedding.size().get(1) {
        return Err(Error::torch(OP, "there must be one id for each row"));
    }
    // SAFETY: the tensors live across the call, which checks ids on the CPU.
    unsafe {
        let message = ffi::asyncthink_embedding_backward(
            ids.contiguous().as_ptr(),
            gradient.as_ptr(),
            of_embedding.as_ptr(),
        );
        ffi::check(OP, message)
    }
}

/// Checks that `vector` `[len]` belongs to rows `[rows, width]` on the same device.
fn check_rows(op: &'static str, rows: &Tensor, vector: &Tensor, len: Option<i64>) -> Result<()> {
    let is_like = rows.dim() == 2
        && len.is_some_and(|len| vector.size() == [len])
        && vector.device() == rows.device()
        && vector.is_contiguous()
        && (vector.kind() == rows.kind() || vector.kind() == Kind::Int64);
    if is_like {
        return Ok(());
    }
    Err(Error::Argument {
        op,
        argument: "rows",
        expected: format!("of two dimensions that fit {:?}", vector.size()),
        got: format!("{:?}", rows.size()),
    })
}

fn check_head(op: &'static str, weight: &Tensor, hidden: &Tensor, targets: &Tensor) -> Result<()> {
    check_rows(op, hidden, targets, hidden.size().first().copied())?;
    let fits = targets.kind() == Kind::Int64
        && hidden.is_contiguous()
        && weight.is_contiguous()
        && weight.dim() == 2
        && weight.kind() == hidden.kind()
        && weight.size()[1] == hidden.size()[1];
    if fits {
        return Ok(());
    }
    Err(Error::Argument {
        op,
        argument: "hidden",
        expected: format!("`[tokens, hidden]` that fit a head {:?}", weight.size()),
        got: format!("{:?}", hidden.size()),
    })
}
