//! Policy losses, advantages, rewards and schedules.
//!
//! Small pure functions, one file per algorithm. Adding one touches its own file and one line of its registry:
//!
//! | kind | trait or function | recipe key | registry |
//! |---|---|---|---|
//! | policy loss | [`TokenLoss`] | `[grpo.loss.NAME]` | [`loss::registry`] |
//! | advantage estimator | [`AdvantageEstimator`] | `grpo.advantage` | [`advantage::registry`] |
//! | reward term | a function of the episode's score | `[grpo.reward]` | [`RewardRule::reward`] |
//!
//! Nothing here knows a model, a tag or a task.

pub mod advantage;
mod aggregation;
pub mod loss;
pub mod reward;
mod schedule;

pub use advantage::{AdvantageEstimator, Group};
pub use aggregation::{Aggregation, BatchTotals, RowCount};
pub use loss::{
    Clip, ClippedPolicyLoss, CrossEntropy, KlPenalty, PolicyObjective, SamplerCorrection, Scope,
    TokenBatch, TokenGradient, TokenLoss, k3,
};
pub use reward::{EpisodeScore, LambdaSchedule, RewardParts, RewardRule, overlong_share};
pub use schedule::LearningRate;
