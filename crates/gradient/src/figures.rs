//! What a pass over a batch measures, as sums over tokens and as means.

use tch::{Kind, Tensor};

use crate::batch::{MicroBatch, to_host};
use crate::error::{Error, Result};
use crate::head;
use crate::loss::{Clip, is_clipped, k3};
use crate::mismatch::Mismatch;
use crate::ranks::{Ranks, count_of};

/// What one pass over a batch measured. Means are 0 where no token was trained.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchFigures {
    /// The loss that was differentiated.
    pub loss: f64,
    /// Micro-batches.
    pub num_micro_batches: usize,
    /// Tokens computed.
    pub num_tokens: usize,
    /// Computed tokens that belong to no row, as a share of all computed ones.
    pub padding_share: f64,
    /// Trained tokens among them; the means below are over these.
    pub num_trained: usize,
    /// Mean entropy of the policy, in nats.
    pub entropy: f64,
    /// Mean k3 estimate of the KL from the sampler's distribution, which the tokens come from, to the policy.
    pub kl_sampler: f64,
    /// Mean k3 estimate of the KL to the reference; 0 without one.
    pub kl_reference: f64,
    /// Share of tokens whose gradient the clip took away.
    pub clip_share: f64,
    /// Largest difference between trainer's and sampler's log-probability, in nats.
    pub mismatch_max_nats: f64,
    /// Mean of that difference.
    pub mismatch_mean_nats: f64,
    /// Tokens that the mismatch is over.
    pub num_compared: usize,
    /// Seconds that the first worker spent on the reference model.
    pub reference_seconds: f64,
}

impl BatchFigures {
    /// Counts rows that were scored and not trained on into the mismatch with the sampler.
    pub(crate) fn include_mismatch(&mut self, skipped: &Mismatch) {
        let mut all = Mismatch {
            max_nats: self.mismatch_max_nats,
            sum_nats: self.mismatch_mean_nats * self.num_trained as f64,
            num_tokens: self.num_trained,
        };
        all.add(skipped);
        self.mismatch_max_nats = all.max_nats;
        self.mismatch_mean_nats = all.sum_nats / all.num_tokens.max(1) as f64;
        self.num_compared = all.num_tokens;
    }
}

/// Sums over trained tokens, in f64.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) loss: f64,
    pub(crate) num_tokens: usize,
    pub(crate) num_row_tokens: usize,
    pub(crate) num_trained: usize,
    pub(crate) entropy: f64,
    pub(crate) kl_sampler: f64,
    pub(crate) kl_reference: f64,
    pub(crate) num_clipped: f64,
    pub(crate) mismatch_max: f64,
    pub(crate) mismatch_sum: f64,
    pub(crate) num_micro_batches: usize,
    pub(crate) reference_seconds: f64,
}

impl Totals {
    /// Adds up what all ranks saw, in the order of the ranks; `None` if one of them abandoned the batch. Seconds stay this
    /// rank's own.
    pub(crate) fn over_ranks(self, is_abandoned: bool, ranks: &Ranks) -> Result<Option<Self>> {
        let own = [
            f64::from(u8::from(is_abandoned)),
            self.loss,
            self.num_tokens as f64,
            self.num_row_tokens as f64,
            self.num_trained as f64,
            self.entropy,
            self.kl_sampler,
            self.kl_reference,
            self.num_clipped,
            self.mismatch_max,
            self.mismatch_sum,
            self.num_micro_batches as f64,
        ];
        let mut all = Self::default();
        for values in ranks.gather_values(&own)? {
            let &[
                is_abandoned,
                loss,
                num_tokens,
                num_row_tokens,
                num_trained,
                entropy,
                kl_sampler,
                kl_reference,
                num_clipped,
                mismatch_max,
                mismatch_sum,
                num_micro_batches,
            ] = values.as_slice()
            else {
                return Err(Error::stage(
                    "adding up a batch",
                    "a rank sent other figures",
                ));
            };
            if is_abandoned != 0.0 {
                return Ok(None);
            }
            all.add(&Self {
                loss,
                num_tokens: count_of(num_tokens),
                num_row_tokens: count_of(num_row_tokens),
                num_trained: count_of(num_trained),
                entropy,
                kl_sampler,
                kl_reference,
                num_clipped,
                mismatch_max,
                mismatch_sum,
                num_micro_batches: count_of(num_micro_batches),
                reference_seconds: 0.0,
            });
        }
        all.reference_seconds = self.reference_seconds;
        Ok(Some(all))
    }

    pub(crate) fn measure_policy(
        &mut self,
        batch: &MicroBatch,
        output: &head::HeadOutput,
        logp_reference: Option<&Tensor>,
        clip: Clip,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let logp = &output.logp;
        let sum = |tensor: &Tensor| tensor.f_sum(Kind::Double);
        let zero = Tensor::f_zeros([], (Kind::Double, logp.device()))?;
        let mismatch = logp.f_sub(&batch.logp_old)?.f_abs()?;
        // One transfer for all figures.
        let figures = Tensor::f_stack(
            &[
                output
                    .entropy
                    .as_ref()
                    .map_or_else(|| Ok(zero.shallow_clone()), sum)?,
                // Tokens come from the sampler, so its log-probability is the first of the two.
                sum(&k3(&batch.logp_old, logp)?)?,
                logp_reference.map_or_else(
                    || Ok(zero.shallow_clone()),
                    |reference| sum(&k3(logp, reference)?),
                )?,
                sum(&is_clipped(logp, &batch.logp_old, &batch.advantages, clip)?)?,
                mismatch.f_max()?.f_to_kind(Kind::Double)?,
                sum(&mismatch)?,
            ],
            0,
        )?;
        if let [
            entropy,
            kl_sampler,
            kl_reference,
            num_clipped,
            mismatch_max,
            mismatch_sum,
        ] = to_host(&figures)?[..]
        {
            *self = Self {
                entropy,
                kl_sampler,
                kl_reference,
                num_clipped,
                mismatch_max,
                mismatch_sum,
                ..*self
            };
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.num_tokens += other.num_tokens;
        self.num_row_tokens += other.num_row_tokens;
        self.num_trained += other.num_trained;
        self.entropy += other.entropy;
        self.kl_sampler += other.kl_sampler;
        self.kl_reference += other.kl_reference;
        self.num_clipped += other.num_clipped;
        // `f64::max` would drop a NaN.
        if other.mismatch_max > self.mismatch_max || other.mismatch_max.is_nan() {
            self.mismatch_max = other.mismatch_max;
        }
        self.mismatch_sum += other.mismatch_sum;
        self.num_micro_batches += other.num_micro_batches;
        self.reference_seconds += other.reference_seconds;
    }

    pub(crate) fn figures(&self) -> BatchFigures {
        let mean = |sum: f64| {
            if self.num_trained == 0 {
                0.0
            } else {
                sum / self.num_trained as f64
            }
        };
        BatchFigures {
            loss: self.loss,
            num_micro_batches: self.num_micro_batches,
            num_tokens: self.num_tokens,
            padding_share: (self.num_tokens - self.num_row_tokens) as f64
                / self.num_tokens.max(1) as f64,
            num_trained: self.num_trained,
            entropy: mean(self.entropy),
            kl_sampler: mean(self.kl_sampler),
            kl_reference: mean(self.kl_reference),
            clip_share: mean(self.num_clipped),
            mismatch_max_nats: self.mismatch_max,
            mismatch_mean_nats: mean(self.mismatch_sum),
            num_compared: self.num_trained,
            reference_seconds: self.reference_seconds,
        }
    }
}
