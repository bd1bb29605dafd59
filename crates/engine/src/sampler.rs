//! How tokens are drawn: checked settings of an agent.

use std::sync::Arc;

use asyncthink_data::TokenId;
use asyncthink_model::MIN_TEMPERATURE;
use asyncthink_torch::SamplingRow;

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

    /// Whether the likeliest token is taken.
    pub fn is_greedy(self) -> bool {
        self.0 == 0.0
    }
}

/// Sampling settings of an agent. The default draws from the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    temperature: Temperature,
    top_k: Option<u32>,
    top_p: f32,
    min_p: f32,
    banned_ids: Arc<[TokenId]>,
    eos_ids: Arc<[TokenId]>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self::new(Temperature(1.0))
    }
}

impl SamplingParams {
    /// Draws at a temperature; no token is left out, and none ends the sequence.
    pub fn new(temperature: Temperature) -> Self {
        Self {
            temperature,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            banned_ids: Arc::default(),
            eos_ids: Arc::default(),
        }
    }

    /// Draws among the `top_k` likeliest tokens, ties with the last of them included; `None` for all.
    ///
    /// # Errors
    /// When it is 0 or above `i32::MAX`.
    pub fn with_top_k(mut self, top_k: Option<u32>) -> Result<Self> {
        if let Some(count) = top_k
            && (count == 0 || i32::try_from(count).is_err())
        {
            return Err(Error::TopK(count));
        }
        self.top_k = top_k;
        Ok(self)
    }

    /// Draws among the likeliest tokens that together have the probability `top_p`; 1 for all.
    ///
    /// # Errors
    /// When it is not above 0 and at most 1.
    pub fn with_top_p(mut self, top_p: f32) -> Result<Self> {
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::TopP(top_p));
        }
        self.top_p = top_p;
        Ok(self)
    }

    /// Draws among the tokens of at least `min_p` times the largest probability; 0 for all.
    ///
    /// # Errors
    /// When it is not at least 0 and at most 1.
    pub fn with_min_p(mut self, min_p: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&min_p) {
            return Err(Error::MinP(min_p));
        }
        self.min_p = min_p;
        Ok(self)
    }

    /// Never draws these tokens.
    #[must_use]
    pub fn with_banned_ids(mut self, ids: impl Into<Arc<[TokenId]>>) -> Self {
        self.banned_ids = ids.into();
        self
    }

    /// Stops the agent once it has sampled one of these tokens.
    #[must_use]
    pub fn with_eos_ids(mut self, ids: impl Into<Arc<[TokenId]>>) -> Self {
        self.eos_ids = ids.into();
        self
    }

    /// The temperature.
    pub fn temperature(&self) -> Temperature {
        self.temperature
    }

    /// Tokens that are never drawn.
    pub fn banned_ids(&self) -> &[TokenId] {
        &self.banned_ids
    }

    /// Tokens that stop the agent.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.eos_ids
    }

    /// Settings of the sample at a position of a sequence.
    pub(crate) fn row(&self, seed: u64, position: usize) -> SamplingRow {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a temperature fits f32, whose smallest normal number is the smallest temperature"
        )]
        let temperature = self.temperature.0 as f32;
        SamplingRow {
            temperature,
            top_k: self.top_k.and_then(|k| i32::try_from(k).ok()).unwrap_or(0),
            top_p: self.top_p,
            min_p: self.min_p,
            seed,
            position: position as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn settings_are_checked() {
        let params = SamplingParams::default;
        for refused in [
            params().with_top_k(Some(0)),
            params().with_top_k(Some(u32::MAX)),
            params().with_top_p(0.0),
            params().with_top_p(1.1),
            params().with_top_p(f32::NAN),
            params().with_min_p(-0.1),
            params().with_min_p(f32::NAN),
        ] {
            assert!(refused.is_err());
        }
        let params = params()
            .with_top_k(Some(5))
            .and_then(|params| params.with_top_p(0.9))
            .and_then(|params| params.with_min_p(0.1))
            .unwrap();
        let row = params.row(3, 9);
        assert_eq!((row.top_k, row.seed, row.position), (5, 3, 9));
        let smallest = SamplingParams::new(Temperature::new(MIN_TEMPERATURE).unwrap());
        assert!(smallest.row(0, 0).temperature > 0.0);
    }
}
