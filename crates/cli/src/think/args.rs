//! What people type after `think`.

use std::path::PathBuf;

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

fn temperature(text: &str) -> Result<f64, &'static str> {
    text.parse()
        .ok()
        .filter(|value: &f64| value.is_finite() && *value >= 0.0)
        .ok_or("must be a number of at least 0")
}
