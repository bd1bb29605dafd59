//! SFT and GRPO loops, advantages, losses, AdamW, schedules, checkpoints, metrics.
//!
//! The loops ([`run_sft`], [`run_grpo`]) are short sequences of named steps over small pure parts, one file each. What
//! reaches the model is rows of ids with a mask, log-probabilities and an advantage; only the step that grades episodes
//! knows that there is a task.
//!
//! Three rules hold everywhere:
//! 1. **The gradient is a sum over tokens.** Every normaliser is computed from the whole batch before the first
//!    micro-batch ([`Aggregation::weights`]), so cutting and packing cannot change the gradient.
//! 2. **Randomness is a function** of seed, stream, step and index ([`derive_seed`]), so a checkpoint has no generator
//!    state and a resumed run equals the unbroken one.
//! 3. **A checkpoint is a transaction** ([`CheckpointStore`]): a kill at any moment leaves whole ones only.
//!
//! Shape legend: `tokens` = packed tokens of a micro-batch, `trained` = tokens with a loss mask of one, `hidden`,
//! `vocab`.

mod advantage;
mod background;
mod batch;
mod checkpoint;
mod episode_figures;
mod episode_files;
mod episodes;
mod error;
mod figures;
mod fingerprint;
mod flat;
mod gathered;
#[cfg(test)]
mod golden;
mod grpo;
mod grpo_line;
pub mod head;
mod layerwise;
mod layout;
mod lock;
mod loss;
mod metrics;
mod mismatch;
mod models;
mod observer;
mod optimizer;
mod optimizer_files;
mod problems;
mod ranks;
mod readme;
mod replicated;
mod reward;
mod run;
mod schedule;
mod score;
mod sft;
mod sharded;
mod stage_folder;
mod streams;
mod tensors;
mod trainee;
mod units;
mod update;

pub use advantage::{Advantage, Group};
pub use batch::MicroBatch;
pub use checkpoint::{Checkpoint, CheckpointStore, Found, Retention, TrainerState};
pub use episode_figures::EpisodeFigures;
pub use episodes::{
    RewardedEpisode, assign_advantages, episode_records, reward_episode, training_rows,
};
pub use error::{Error, KeyDifference, Result};
pub use figures::BatchFigures;
pub use grpo::run_grpo;
pub use layout::RunLayout;
pub use lock::StageLock;
pub use loss::{Aggregation, BatchTotals, Clip, RowCount, is_clipped, k3, policy_loss, sft_loss};
pub use metrics::{MetricsLog, Phase, StepClock, Timing};
pub use models::{grpo_initial_model, open_recipe_device, sft_tokenizer};
pub use observer::{Observer, RunStart, StepReport, StopFlag};
pub use optimizer::{AdamW, AdamWSettings, is_decayed};
pub use problems::{test_problems, train_problems};
pub use ranks::{Ranks, SharedFailure};
pub use reward::{EpisodeScore, LambdaSchedule, RewardParts, RewardRule};
pub use run::{Attempt, Resume, RunOptions, RunOutcome};
pub use schedule::{Decay, LearningRate};
pub use score::score_sequences;
pub use sft::run_sft;
pub use sharded::ShardedDecoder;
pub use streams::{DataOrder, Draws, Stream, derive_seed, epoch_order};
pub use update::{BatchSettings, Objective, Weights, accumulate_gradient, score_rows};
