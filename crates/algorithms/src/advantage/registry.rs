//! Advantage estimators that `grpo.advantage` can name.

use std::sync::Arc;

use asyncthink_recipe::Registry;

use super::estimator::BuildAdvantage;
use super::mean_centred::MeanCentred;
use super::mean_std::MeanStd;
use super::rloo::Rloo;

/// The estimators that `grpo.advantage` can name.
pub fn registry() -> Registry<BuildAdvantage> {
    Registry::<BuildAdvantage>::new("advantage estimator")
        .with("mean_centred", |_| Arc::new(MeanCentred))
        .with("mean_std", |section| Arc::new(MeanStd::of(section)))
        .with("rloo", |_| Arc::new(Rloo))
}
