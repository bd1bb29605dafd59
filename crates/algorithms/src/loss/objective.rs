//! A policy loss with the terms and weights that `[grpo]` adds to any of them.

use std::sync::Arc;

use asyncthink_recipe::GrpoSection;
use tch::{TchError, Tensor};

use super::kl::KlPenalty;
use super::sampler_correction::SamplerCorrection;
use super::{Scope, TokenBatch, TokenGradient, TokenLoss, differentiate, weighted_sum};

/// A policy loss, weighted against a mismatch with the sampler, plus a KL term and an entropy bonus.
///
/// ```text
/// L = sum_t w_t * (k_t * policy_t + beta * kl_t - entropy_coefficient * H_t)
/// ```
#[derive(Clone, Debug)]
pub struct PolicyObjective {
    policy: Arc<dyn TokenLoss>,
    kl: Option<KlPenalty>,
    correction: Option<SamplerCorrection>,
    entropy_coefficient: f64,
    metric_names: Vec<&'static str>,
}

impl PolicyObjective {
    /// `policy` alone.
    pub fn new(policy: Arc<dyn TokenLoss>) -> Self {
        let metric_names = policy.metric_names().to_vec();
        Self {
            policy,
            kl: None,
            correction: None,
            entropy_coefficient: 0.0,
            metric_names,
        }
    }

    /// `policy` with what `[grpo]` asks for.
    pub fn of(section: &GrpoSection, policy: Arc<dyn TokenLoss>) -> Self {
        let correction = section.sampler_correction.as_ref();
        let mut this = Self::new(policy).with_entropy(section.entropy_coefficient);
        this.kl = KlPenalty::of(section);
        match correction {
            Some(correction) => this.with_correction(SamplerCorrection::of(correction)),
            None => this,
        }
    }

    /// Adds a KL term.
    #[must_use]
    pub fn with_kl(mut self, kl: KlPenalty) -> Self {
        self.kl = Some(kl);
        self
    }

    /// Multiplies the policy loss by importance weights.
    #[must_use]
    pub fn with_correction(mut self, correction: SamplerCorrection) -> Self {
        self.metric_names.extend(correction.metric_names());
        self.correction = Some(correction);
        self
    }

    /// Adds an entropy bonus.
    #[must_use]
    pub fn with_entropy(mut self, coefficient: f64) -> Self {
        self.entropy_coefficient = coefficient;
        self
    }
}

impl TokenLoss for PolicyObjective {
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError> {
        let policy = match &self.correction {
            Some(correction) => {
                let weights = tokens.weights.f_mul(&correction.weights(tokens)?)?;
                self.policy.gradient(&TokenBatch {
                    weights: &weights,
                    ..*tokens
                })?
            }
            None => self.policy.gradient(tokens)?,
        };
        let (Some(kl), Some(reference)) = (&self.kl, tokens.logp_reference) else {
            return Ok(policy);
        };
        let kl = differentiate(tokens.logp, |logp| {
            weighted_sum(
                &kl.losses(logp, tokens.logp_old, reference)?,
                tokens.weights,
            )
        })?;
        Ok(TokenGradient {
            loss: policy.loss.f_add(&kl.loss)?,
            gradient: policy.gradient.f_add(&kl.gradient)?,
        })
    }

    fn metrics(&self, tokens: &TokenBatch<'_>) -> Result<Vec<(&'static str, Tensor)>, TchError> {
        let mut metrics = self.policy.metrics(tokens)?;
        if let Some(correction) = &self.correction {
            let sums = correction.metrics(tokens)?;
            metrics.extend(correction.metric_names().into_iter().zip(sums));
        }
        Ok(metrics)
    }

    fn metric_names(&self) -> &[&'static str] {
        &self.metric_names
    }

    fn scope(&self) -> Scope {
        let correction = self.correction.as_ref().map(SamplerCorrection::scope);
        match (self.policy.scope(), correction) {
            (Scope::Token, None | Some(Scope::Token)) => Scope::Token,
            _ => Scope::Sequence,
        }
    }

    fn needs_reference(&self) -> bool {
        self.kl.is_some() || self.policy.needs_reference()
    }

    fn entropy_coefficient(&self) -> f64 {
        self.entropy_coefficient
    }

    fn has_gradient(&self, advantage: f32) -> bool {
        self.kl.is_some() || self.entropy_coefficient > 0.0 || self.policy.has_gradient(advantage)
    }
}
