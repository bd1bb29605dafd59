//! `[sft]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::optimizer::OptimizerSection;
use super::or_auto::OrAuto;
use crate::defaults::{MAX_COUNT, count, yes};
use crate::saving::{FinalDtype, SftMetric};

/// `[sft]`: stage 1, cold-start format fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SftSection {
    /// Optimizer steps.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub num_steps: usize,
    /// Tokens per optimizer step, prompts included. Small batches and many
    /// steps teach the format sooner than the reverse.
    #[schemars(range(min = 16, max = MAX_COUNT))]
    pub batch_tokens: usize,
    /// Most tokens in memory at a time, or `auto`, the default: 16384, or as
    /// many of 8192, 4096, ... as the memory is predicted to hold. The
    /// gradient does not depend on it. A resumed run goes on with the number
    /// that was chosen when it began.
    #[serde(default)]
    #[schemars(
        with = "usize",
        range(min = 16, max = MAX_COUNT),
        extend("default" = "auto", "x-or" = "auto")
    )]
    pub micro_batch_tokens: OrAuto<usize>,
    /// Whether only the inputs of layers are kept for the backward pass, in
    /// which each layer is computed again: a third more work for a fraction
    /// of the memory. `auto`, the default, does so where less than 4096
    /// tokens would be in memory at a time without. `distributed.shard =
    /// "full"` always does.
    #[serde(default)]
    #[schemars(with = "bool", extend("default" = "auto", "x-or" = "auto"))]
    pub activation_checkpointing: OrAuto<bool>,
    /// Whether rows of a micro-batch that begin alike share their beginning,
    /// which is then computed once. The gradient
    /// does not depend on it. Default true.
    #[serde(default = "yes")]
    pub share_prefixes: bool,
    /// Steps between checkpoints; the last step always writes one.
    /// Default 200.
    #[serde(default = "count::<200>")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub save_every_steps: usize,
    /// Newest checkpoints to keep. Default 2, so that one is always complete.
    #[serde(default = "count::<2>")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub keep_checkpoints: usize,
    /// Best checkpoints to keep besides the newest; the link `best` names the
    /// best of them. Default 0.
    #[serde(default)]
    #[schemars(range(max = MAX_COUNT))]
    pub keep_best_checkpoints: usize,
    /// What the best are found by: a figure of the step that is saved, or
    /// for `held_out_loss` as measured last. Of equals the later one is the
    /// better. Default `held_out_loss`, which needs `eval_every_steps`.
    #[serde(default)]
    pub best_metric: SftMetric,
    /// Steps between lines of `metrics.jsonl`. Default 1.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub log_every_steps: usize,
    /// Steps between losses on the pairs of held-out problems; absent means
    /// never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub eval_every_steps: Option<usize>,
    /// Evaluations in a row without a better `best_metric` after which the
    /// stage ends, as if its steps were done; absent means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub early_stopping_patience: Option<usize>,
    /// A figure is better than the best one before it where it differs by
    /// more than this, for `early_stopping_patience`; absent means 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub early_stopping_threshold: Option<f64>,
    /// Format of a copy of the finished model, a whole model even where
    /// adapters are trained, which the last checkpoint gets in a folder of
    /// this name: `bf16` for half the size, rounded once. The checkpoint
    /// itself stays exact. Absent means no copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_dtype: Option<FinalDtype>,
    /// AdamW and its schedule.
    pub optimizer: OptimizerSection,
}
