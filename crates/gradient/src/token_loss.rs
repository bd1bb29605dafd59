//! A loss over the trained tokens of a micro-batch, as the chunked head asks for it.

use std::ops::Range;

use asyncthink_algorithms::{Scope, TokenBatch, TokenGradient, TokenLoss};
use tch::{Kind, Tensor};

use crate::error::Result;
use crate::micro_batch::MicroBatch;

/// Log-probabilities of the policy that the probability ratio is against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OldLogp<'a> {
    /// These, f32 `[trained]`.
    Given(&'a Tensor),
    /// Those of the weights being trained, which no update has changed yet.
    Current,
}

impl<'a> OldLogp<'a> {
    /// The values, where `logp` are those of the weights being trained.
    pub(crate) fn resolve(self, logp: &'a Tensor) -> &'a Tensor {
        match self {
            Self::Given(given) => given,
            Self::Current => logp,
        }
    }
}

/// A loss applied to one micro-batch.
#[derive(Debug)]
pub(crate) struct MicroBatchLoss<'a> {
    loss: &'a dyn TokenLoss,
    batch: &'a MicroBatch,
    logp_old: OldLogp<'a>,
    logp_reference: Option<&'a Tensor>,
    /// Of a loss over sequences: value and gradient of the whole micro-batch. The value is given away with the first chunk.
    whole: Option<TokenGradient>,
}

impl<'a> MicroBatchLoss<'a> {
    /// A loss of [`Scope::Token`].
    pub(crate) fn of_tokens(
        loss: &'a dyn TokenLoss,
        batch: &'a MicroBatch,
        logp_old: OldLogp<'a>,
        logp_reference: Option<&'a Tensor>,
    ) -> Self {
        Self {
            loss,
            batch,
            logp_old,
            logp_reference,
            whole: None,
        }
    }

    /// A loss of any scope; `logp` f32 `[trained]` are the log-probabilities of the score pass, which a loss of
    /// [`Scope::Sequence`] needs.
    pub(crate) fn new(
        loss: &'a dyn TokenLoss,
        batch: &'a MicroBatch,
        logp_old: OldLogp<'a>,
        logp_reference: Option<&'a Tensor>,
        logp: Option<&Tensor>,
    ) -> Result<Self> {
        let mut this = Self::of_tokens(loss, batch, logp_old, logp_reference);
        if let (Scope::Sequence, Some(logp)) = (loss.scope(), logp) {
            let logp_old = match logp_old {
                OldLogp::Given(given) => given,
                OldLogp::Current => logp,
            };
            this.whole = Some(loss.gradient(&batch.tokens(logp, logp_old, logp_reference))?);
        }
        Ok(this)
    }

    /// Value and `dL/dlogp` of a chunk of trained tokens; `logp` f32 `[chunk]`, detached.
    pub(crate) fn chunk(&self, range: &Range<i64>, logp: &Tensor) -> Result<TokenGradient> {
        let part = |tensor: &Tensor| MicroBatch::part(tensor, range);
        if let Some(whole) = &self.whole {
            let is_first = range.start == 0;
            return Ok(TokenGradient {
                loss: if is_first {
                    whole.loss.shallow_clone()
                } else {
                    Tensor::f_zeros([], (Kind::Float, logp.device()))?
                },
                gradient: part(&whole.gradient)?,
            });
        }
        let batch = self.batch;
        let reference = self.logp_reference.map(part).transpose()?;
        let logp_old = match self.logp_old {
            OldLogp::Given(given) => part(given)?,
            OldLogp::Current => logp.shallow_clone(),
        };
        Ok(self.loss.gradient(&TokenBatch {
            logp,
            logp_old: &logp_old,
            logp_sampler: &part(&batch.logp_sampler)?,
            logp_reference: reference.as_ref(),
            advantages: &part(&batch.advantages)?,
            weights: &part(&batch.weights)?,
            rows: &part(&batch.rows)?,
            num_rows: batch.num_rows(),
        })?)
    }
}
