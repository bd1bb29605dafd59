//! SFT and GRPO: the two training loops, their steps, metrics and run control.
//!
//! The loops ([`run_sft`], [`run_grpo`]) are short sequences of named steps over other crates: episodes come from `rollout`, losses,
//! advantages and rewards from `algorithms`, gradients from `gradient`, ranks and the optimizer from `distributed`, saving from
//! `checkpoint`. Settings are made once from the recipe ([`SftSettings`], [`GrpoSettings`]); nothing below takes the recipe.
//!
//! Three rules hold everywhere:
//! 1. **The gradient is a sum over tokens**, whose normaliser comes from the whole batch.
//! 2. **Randomness is a function** of seed, stream, step and index ([`asyncthink_data::derive_seed`]), so a checkpoint has no
//!    generator state and a resumed run equals the unbroken one.
//! 3. **A checkpoint is a transaction** ([`asyncthink_checkpoint::CheckpointStore`]): a kill at any moment leaves whole ones only.

mod episode_files;
mod error;
mod grpo;
pub mod memory;
mod models;
mod observer;
mod problems;
mod rank_folder;
mod run;
mod settings;
mod sft;

pub use error::{Error, Result};
pub use grpo::run_grpo;
pub use models::{new_config, sft_tokenizer};
pub use observer::{MemoryReport, Observer, RunStart, StepReport, StopFlag};
pub use problems::{test_problems, train_problems, validation_problems};
pub use rank_folder::RankFolder;
pub use run::{Attempt, Resume, RunOptions, RunOutcome, new_optimizer, settle};
pub use settings::{
    EarlyStopping, GrpoSettings, Registries, RunSettings, SaveSettings, SftGoal, SftSettings,
};
pub use sft::run_sft;
