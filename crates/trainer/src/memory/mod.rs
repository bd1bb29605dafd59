//! Memory of a training run, predicted before it starts: part by part, from the model's configuration and the settings alone.
//!
//! [`predict`] is a pure function. [`choose`] finds the largest micro-batch that fits and whether to keep activations;
//! [`MemoryPrediction::remedies`] says what to change where nothing fits.

mod activations;
mod choose;
mod of_stage;
mod prediction;
mod remedies;
mod settings;
mod settled;
#[cfg(test)]
mod tests;

pub use choose::{CANDIDATE_TOKENS, Chosen, choose};
pub use of_stage::Machine;
pub(crate) use of_stage::precision_on;
pub use prediction::{MemoryPart, MemoryPrediction, When, bytes_text, predict};
pub use remedies::Remedy;
pub use settings::{MemorySettings, SamplingMemory, Trained};
pub use settled::SettledMemory;
