//! What people type after `think`.

use std::path::PathBuf;

use asyncthink_engine::Temperature;
use asyncthink_protocol::Capacity;
use asyncthink_rollout::ModelCard;
use asyncthink_torch::DeviceSpec;
use clap::{Args, value_parser};

/// Most agents at a time: each has its place in the cache from the beginning.
const MAX_CAPACITY: i64 = 256;

#[derive(Debug, Args)]
pub(crate) struct ThinkArgs {
    /// The query, put into the organizer's prompt as it is; `-` reads it from standard input
    #[arg(value_name = "QUERY")]
    pub(crate) query: String,

    /// Folder of a model, or of a run, whose newest checkpoint is taken
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,

    /// For an adapter folder: the folder of its base model, in place of the name or path in it
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,

    /// Sampling temperature; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f64,

    /// Seed of the sampling: same seed, same episode
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Where the model runs: `auto` is a GPU where there is one
    #[arg(long, value_name = "auto|cpu|cuda|cuda:N", default_value = "auto")]
    pub(crate) device: DeviceSpec,

    /// Agents at a time, the organizer included, instead of the model's own number
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=MAX_CAPACITY))]
    pub(crate) capacity: Option<u32>,

    /// Tokens per sub-query, instead of the model's own number
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) worker_max_tokens: Option<u32>,

    /// Organizer tokens before each Join, instead of the model's own number
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) organizer_max_tokens: Option<u32>,

    /// Write one line of JSON at the end, as `trace` reads it, in place of the live view
    #[arg(long)]
    pub(crate) json: bool,
}

impl ThinkArgs {
    /// Puts what was given in place of what the card says.
    pub(crate) fn override_card(&self, card: &mut ModelCard) {
        if let Some(capacity) = self.capacity.and_then(Capacity::new) {
            card.capacity = capacity;
        }
        if let Some(tokens) = self.worker_max_tokens {
            card.worker_max_tokens = tokens;
        }
        if let Some(tokens) = self.organizer_max_tokens {
            card.organizer_max_tokens = tokens;
        }
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| "must be a number of at least 0".to_owned())?;
    if value.is_finite() && value >= 0.0 {
        let temperature = Temperature::new(value).map_err(|error| error.to_string())?;
        return Ok(temperature.get());
    }
    Err("must be a number of at least 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_is_one_that_can_be_divided_by() {
        for text in ["0", "1e-37", "0.7", "2"] {
            assert!(temperature(text).is_ok(), "{text}");
        }
        for text in ["", "x", "-1", "nan", "inf"] {
            let error = temperature(text).expect_err("no temperature");
            assert_eq!(error, "must be a number of at least 0");
        }
        for text in ["1e-40", "1e-45", "1e-300"] {
            let error = temperature(text).expect_err("too small");
            assert!(
                error.contains("0, which takes the likeliest token"),
                "{error}"
            );
        }
    }
}
