//! From a row of log-probs to a token.

use asyncthink_data::TokenId;
use asyncthink_model::MIN_TEMPERATURE;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// Sampling temperature: 0, which takes the likeliest token, or a finite number of at least [`MIN_TEMPERATURE`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature(f64);

impl Temperature {
    /// Checks a temperature.
    ///
    /// # Errors
    /// When it is negative, not finite, or too small to divide by.
    pub fn new(value: f64) -> Result<Self> {
        if value == 0.0 || (value.is_finite() && value >= MIN_TEMPERATURE) {
            Ok(Self(value))
        } else {
            Err(Error::Temperature(value))
        }
    }

    /// The value.
    pub fn get(self) -> f64 {
        self.0
    }

    /// What logits are divided by: greedy decoding reports the log-probs of the unscaled distribution.
    pub(crate) fn divisor(self) -> f64 {
        if self.is_greedy() { 1.0 } else { self.0 }
    }

    pub(crate) fn is_greedy(self) -> bool {
        self.0 == 0.0
    }
}

/// An agent's own random stream.
#[derive(Debug)]
pub(crate) struct AgentSampler {
    rng: ChaCha8Rng,
}

impl AgentSampler {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Draws from `logprobs` `[vocab]` by inverting the cumulative distribution; `None` when they are not finite.
    pub(crate) fn sample(&mut self, logprobs: &[f32], greedy: bool) -> Option<(TokenId, f32)> {
        let index = if greedy {
            likeliest(logprobs)?
        } else {
            self.invert(logprobs)?
        };
        let logprob = logprobs[index];
        logprob
            .is_finite()
            .then(|| (TokenId(u32::try_from(index).unwrap_or(u32::MAX)), logprob))
    }

    fn invert(&mut self, logprobs: &[f32]) -> Option<usize> {
        // 53 random bits: a uniform number of [0, 1) in f64.
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut cumulative = 0.0;
        for (index, &logprob) in logprobs.iter().enumerate() {
            let probability = f64::from(logprob).exp();
            if probability.is_nan() {
                return None;
            }
            if probability > 0.0 {
                cumulative += probability;
                if uniform < cumulative {
                    return Some(index);
                }
            }
        }
        // Rounding can leave the sum just below 1. The last ids of a padded vocabulary are of no token.
        likeliest(logprobs)
    }
}

fn likeliest(logprobs: &[f32]) -> Option<usize> {
    let mut best = None;
    for (index, &logprob) in logprobs.iter().enumerate() {
        if logprob.is_nan() {
            return None;
        }
        if best.is_none_or(|other: usize| logprob > logprobs[other]) {
            best = Some(index);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_follow_the_distribution_and_the_seed() {
        let logprobs: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let draw = |seed| {
            let mut sampler = AgentSampler::new(seed);
            (0..20_000)
                .map(|_| sampler.sample(&logprobs, false).unwrap().0.0)
                .collect::<Vec<_>>()
        };
        let first = draw(1);
        assert_eq!(first, draw(1));
        assert_ne!(first, draw(2));
        for (token, expected) in [(0, 0.5), (1, 0.3), (2, 0.2)] {
            let share = first.iter().filter(|&&t| t == token).count() as f64 / 20_000.0;
            assert!((share - expected).abs() < 0.02, "token {token}: {share}");
        }
    }

    #[test]
    fn greedy_takes_the_first_maximum_and_impossible_tokens_are_never_drawn() {
        let mut sampler = AgentSampler::new(3);
        assert_eq!(
            sampler.sample(&[-1.0, -0.5, -0.5], true).unwrap().0,
            TokenId(1)
        );
        let only = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        for _ in 0..100 {
            assert_eq!(sampler.sample(&only, false).unwrap().0, TokenId(1));
        }
    }

    #[test]
    fn a_draw_beyond_the_sum_takes_the_likeliest_token() {
        // Rounding makes a gap that no test would meet; this one is met by every second draw.
        let logprobs: Vec<f32> = [0.1f32, 0.25, 0.1, 0.05].iter().map(|p| p.ln()).collect();
        let mut sampler = AgentSampler::new(5);
        let mut counts = [0_u32; 4];
        for _ in 0..20_000 {
            let (token, logprob) = sampler.sample(&logprobs, false).unwrap();
            let index = token.0 as usize;
            assert!((logprob - logprobs[index]).abs() < 1e-9);
            counts[index] += 1;
        }
        for (count, expected) in counts.into_iter().zip([0.1, 0.75, 0.1, 0.05]) {
            let share = f64::from(count) / 20_000.0;
            assert!((share - expected).abs() < 0.02, "{counts:?}");
        }
        // Without a possible token there is none to take.
        assert!(sampler.sample(&[f32::NEG_INFINITY; 3], false).is_none());
    }

    #[test]
    fn not_a_number_is_refused() {
        let mut sampler = AgentSampler::new(4);
        assert!(sampler.sample(&[f32::NAN, 0.0], false).is_none());
        assert!(sampler.sample(&[f32::NAN, 0.0], true).is_none());
    }

    #[test]
    fn temperatures_are_checked() {
        assert!(Temperature::new(-0.1).is_err());
        assert!(Temperature::new(f64::NAN).is_err());
        for value in [1e-300, 1e-45, 1e-40, 1.1e-38] {
            let error = Temperature::new(value).unwrap_err();
            assert!(error.to_string().contains("1.2e-38"), "{error}");
        }
        assert!(!Temperature::new(MIN_TEMPERATURE).unwrap().is_greedy());
        assert!(Temperature::new(0.0).unwrap().is_greedy());
    }
}
