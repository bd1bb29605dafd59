//! The sections of single stages: synth, sft, grpo, eval.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{MAX_COUNT, MAX_ITEMS, count, one, yes, zero};
use crate::saving::{GrpoMetric, SftMetric};

/// `[synth]`: cold-start traces written by the solver teacher. An attempt is
/// one line: an expression, its value, and whether that is the target. The
/// traces teach the format; how often they do the right thing decides what
/// policy optimisation can select from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SynthSection {
    /// Traces to write. A trace of n sub-queries gives n + 1 training pairs.
    #[schemars(range(min = 1, max = MAX_ITEMS))]
    pub num_traces: usize,
    /// Most attempts that the organizer writes between two of its actions;
    /// the number is drawn uniformly from 0 to this. Default 4.
    #[serde(default = "count::<4>")]
    #[schemars(range(min = 1, max = 256))]
    pub max_attempts_organizer: usize,
    /// Most attempts that a worker writes per sub-query; the number is drawn
    /// uniformly from 1 to this. Default 4.
    #[serde(default = "count::<4>")]
    #[schemars(range(min = 1, max = 256))]
    pub max_attempts_worker: usize,
    /// Probability that an attempt is drawn from the true solutions; the
    /// others are drawn blindly, so that the model also learns to reject.
    /// Default 0.3: reinforcement learning finds nothing where attempts
    /// almost never hit.
    #[serde(default = "crate::defaults::hit_rate")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub hit_rate: f64,
    /// Share of the traces whose answer lists what was found and returned;
    /// the others answer with attempts whatever their value. Default 0.5: the
    /// paper's answers need not be right, and the rest is left to learn.
    #[serde(default = "crate::defaults::half")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub correct_answer_rate: f64,
    /// Share of the traces whose agents go on until they have found enough,
    /// up to their most attempts, and then stop; in the others the number of
    /// attempts does not depend on what they find. Default 0.25.
    #[serde(default = "crate::defaults::quarter")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub persistence_rate: f64,
    /// Probability that a worker that found nothing returns its last attempt
    /// instead of nothing. Default 0.1.
    #[serde(default = "crate::defaults::tenth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub wrong_return_rate: f64,
    /// Probability that a sub-query names the operator to try, as in
    /// `3 5 7 = 15 with *`. Default 0: the whole problem is handed over.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub focus_rate: f64,
    /// Share of the traces that ask for another target than their problem:
    /// the value of a random expression over its numbers, never one that is
    /// kept for testing. Default 0. Targets with several solutions are few;
    /// a format that is shown on many more carries over to unseen ones.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub other_target_rate: f64,
    /// Share of those other targets that have one of their last two digits
    /// drawn anew. Default 0. Such a target misses a value by one digit: to
    /// judge it, every digit must be compared. It may be out of reach, so a
    /// high share leaves few hits to learn from.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub near_target_rate: f64,
    /// Digits to which the teacher pads the values that it computes, as
    /// `{target:03}` does for the target in `prompts.query`. Default 0: none.
    /// With more digits than a token of the vocabulary has, value and target
    /// are spelled, and are compared digit by digit: that carries over to
    /// targets that training never shows.
    #[serde(default = "count::<0>")]
    #[schemars(range(min = 0, max = 18))]
    pub value_width: usize,
    /// Most Forks in a sampled topology. Topologies are drawn uniformly from
    /// the legal Fork/Join sequences of the pool's capacity in which every
    /// worker is joined, the one without Forks included. Default 3.
    #[serde(default = "count::<3>")]
    #[schemars(range(min = 0, max = 64))]
    pub topology_max_forks: usize,
}

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
    /// Most tokens in memory at a time. The gradient does not depend on it.
    /// Default 16384.
    #[serde(default = "count::<16384>")]
    #[schemars(range(min = 16, max = MAX_COUNT))]
    pub micro_batch_tokens: usize,
    /// Whether only the inputs of layers are kept for the backward pass, in
    /// which each layer is computed again: a third more work for a fraction
    /// of the memory. `distributed.shard = "full"` always does. Default
    /// false.
    #[serde(default)]
    pub activation_checkpointing: bool,
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
    /// Steps between losses on held-out pairs; absent means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub eval_every_steps: Option<usize>,
    /// AdamW and its schedule.
    pub optimizer: OptimizerSection,
}

/// `[sft.optimizer]`, `[grpo.optimizer]`: AdamW, warm-up, decay, clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSection {
    /// Peak learning rate.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub learning_rate: f64,
    /// Steps of linear warm-up from 0 to `learning_rate`. Default 0.
    #[serde(default)]
    #[schemars(range(max = MAX_COUNT))]
    pub warmup_steps: usize,
    /// How the learning rate falls after the warm-up, until the last step.
    /// Default `constant`.
    #[serde(default)]
    pub schedule: Schedule,
    /// Final learning rate as a share of the peak, for `cosine` and `linear`.
    /// Default 0.1.
    #[serde(default = "crate::defaults::min_lr_ratio")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_lr_ratio: f64,
    /// Decay of the first moment. Default 0.9.
    #[serde(default = "crate::defaults::beta1")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95: it follows the changing
    /// gradients of policy optimisation sooner than 0.999.
    #[serde(default = "crate::defaults::beta2")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    #[serde(default = "crate::defaults::adam_eps")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub eps: f64,
    /// Decoupled weight decay, on matrices only. Default 0.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// The gradient's norm is cut to this. Default 1.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_grad_norm: f64,
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Straight line to `min_lr_ratio`.
    Linear,
    /// Half a cosine to `min_lr_ratio`.
    Cosine,
}

/// `[grpo]`: stage 2, organizer-worker policy optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrpoSection {
    /// Steps, each one rollout and its updates.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub num_steps: usize,
    /// Problems per step.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub prompts_per_step: usize,
    /// Episodes per problem, whose rewards are compared. Default 8.
    #[serde(default = "count::<8>")]
    #[schemars(
        range(min = 2, max = 1_000_000),
        extend("x-reason" = "a group of one makes every advantage zero")
    )]
    pub group_size: usize,
    /// Sampling temperature of the rollout. Default 1: the policy that is
    /// trained is the one that samples.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub temperature: f64,
    /// Optimizer updates per rollout. Default 1, fully on-policy.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = 64))]
    pub num_updates_per_rollout: usize,
    /// The probability ratio is clipped below at 1 minus this. Default 0.2.
    #[serde(default = "crate::defaults::clip_eps")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub clip_eps_low: f64,
    /// The probability ratio is clipped above at 1 plus this. Default 0.2;
    /// larger values than `clip_eps_low` leave rare tokens room to grow.
    #[serde(default = "crate::defaults::clip_eps")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub clip_eps_high: f64,
    /// Weight of the KL term against the model that the stage started from.
    /// Default 0, which also saves the reference model's memory.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0))]
    pub kl_beta: f64,
    /// How rewards become advantages. The paper does not say. Default
    /// `mean_centred`: dividing by the group's standard deviation lets the
    /// small concurrency reward outweigh accuracy where accuracy is equal.
    #[serde(default)]
    pub advantage: Advantage,
    /// Added to the standard deviation in `mean_std`. Default 1e-4.
    #[serde(default = "crate::defaults::advantage_eps")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub advantage_eps: f64,
    /// What the loss is divided by. Default `token_mean`.
    #[serde(default)]
    pub loss_aggregation: LossAggregation,
    /// Tokens per episode that `constant_length` divides by.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub constant_length_tokens: Option<usize>,
    /// Most tokens in memory at a time. The gradient does not depend on it.
    /// Default 16384.
    #[serde(default = "count::<16384>")]
    #[schemars(range(min = 16, max = MAX_COUNT))]
    pub micro_batch_tokens: usize,
    /// Whether only the inputs of layers are kept for the backward pass, in
    /// which each layer is computed again: a third more work for a fraction
    /// of the memory. `distributed.shard = "full"` always does. Default
    /// false.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// Steps between checkpoints; the last step always writes one.
    /// Default 20.
    #[serde(default = "count::<20>")]
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
    /// What the best are found by: a figure of the step that is saved. Of
    /// equals the later one is the better. Default `reward`, what is trained
    /// for. A step has few episodes, so its figures are partly chance.
    #[serde(default)]
    pub best_metric: GrpoMetric,
    /// Steps between lines of `metrics.jsonl`. Default 1.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub log_every_steps: usize,
    /// Steps between episode files `episodes/step_N.parquet`; absent means
    /// none are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub dump_episodes_every_steps: Option<usize>,
    /// The run fails where the sampler's and the trainer's log-probabilities
    /// of a token differ by more than this, in nats; absent means that the
    /// difference is only measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_logprob_mismatch: Option<f64>,
    /// AdamW and its schedule.
    pub optimizer: OptimizerSection,
    /// What an episode earns.
    #[serde(default)]
    pub reward: RewardSection,
}

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Advantage {
    /// Reward minus the group's mean.
    #[default]
    MeanCentred,
    /// Reward minus the group's mean, divided by its standard deviation.
    MeanStd,
}

impl Advantage {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::MeanCentred => "mean_centred",
            Self::MeanStd => "mean_std",
        }
    }
}

/// What the loss is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossAggregation {
    /// All trained tokens of the step.
    #[default]
    TokenMean,
    /// Each episode's own tokens, then the number of episodes.
    EpisodeMean,
    /// The number of episodes times `constant_length_tokens`.
    ConstantLength,
}

/// `[grpo.reward]`: accuracy plus `lambda` times `min(eta/c, tau) / tau`, or
/// `format_error` where the episode breaks the protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardSection {
    /// Weight of the concurrency reward. The paper gives no number. Default
    /// 0.2: below one solution of four, so that speed never pays for a wrong
    /// answer.
    #[serde(default = "crate::defaults::lambda")]
    #[schemars(range(min = 0.0))]
    pub lambda: f64,
    /// Concurrency ratio eta/c from which more earns nothing. The paper gives
    /// no number. Must exceed 1/c, the ratio of an organizer that works
    /// alone. Default 0.9.
    #[serde(default = "crate::defaults::tau")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub tau: f64,
    /// Reward of an episode with a format error. The paper gives no number.
    /// Default 0: no better than a valid wrong answer, and not so low that
    /// the model stops forking.
    #[serde(default = "zero")]
    pub format_error: f64,
    /// Pay the concurrency reward only where accuracy is above 0. Default
    /// true: otherwise fast wrong answers are what is learnt first.
    #[serde(default = "yes")]
    pub gate_concurrency: bool,
    /// Count the tokens of workers that are never joined. Default true, the
    /// paper's measure; false takes away the gain of idle Forks.
    #[serde(default = "yes")]
    pub count_unjoined: bool,
    /// Weight of the concurrency reward at the last step; between, it moves
    /// in a straight line from `lambda`. Absent means that it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub lambda_final: Option<f64>,
}

impl Default for RewardSection {
    fn default() -> Self {
        Self {
            lambda: crate::defaults::lambda(),
            tau: crate::defaults::tau(),
            format_error: zero(),
            gate_concurrency: yes(),
            count_unjoined: yes(),
            lambda_final: None,
        }
    }
}

/// `[eval]`: measurement on held-out problems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalSection {
    /// Held-out problems to use; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_ITEMS))]
    pub num_problems: Option<usize>,
    /// Episodes per problem. Default 1.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = 10_000))]
    pub samples_per_problem: usize,
    /// Sampling temperature; 0 takes the likeliest token. Default 1, as in
    /// training.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Resamples for the bootstrap intervals. Default 1000.
    #[serde(default = "count::<1000>")]
    #[schemars(range(min = 10, max = 100_000))]
    pub bootstrap_samples: usize,
    /// Coverage of the intervals. Default 0.95.
    #[serde(default = "crate::defaults::confidence")]
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub confidence: f64,
    /// Whose prompts, protocol and budgets are used. Default `model`: those
    /// that the model was trained with, which lie in its folder. `recipe`
    /// takes `[prompts]` and `[protocol]` of this recipe, to measure a model
    /// under other budgets.
    #[serde(default)]
    pub rules_from: RulesFrom,
}

/// Whose prompts, protocol and budgets an evaluation uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RulesFrom {
    /// The model's, from `asyncthink.json` in its folder; the recipe's for a
    /// model that has none.
    #[default]
    Model,
    /// The recipe's.
    Recipe,
}
