//! `[grpo]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named_table::NamedTable;
use super::optimizer::OptimizerSection;
use super::or_auto::OrAuto;
use super::reward::RewardSection;
use super::sampler_correction::SamplerCorrectionSection;
use crate::defaults::{MAX_COUNT, MAX_ITEMS, count, is_default, is_one, one, yes, zero};
use crate::saving::{FinalDtype, GrpoMetric};

/// `[grpo]`: stage 2, organizer-worker policy optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key")]
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
    /// Whether to start from a model of `sft` that has not done
    /// `sft.num_steps` steps, or that `sft` is still working on. Default
    /// false: such a start is refused.
    #[serde(default)]
    pub init_from_unfinished: bool,
    /// Passes over a rollout, each of `num_mini_batches` optimizer updates.
    /// Default 1, which with one mini-batch is fully on-policy.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = 64))]
    pub num_updates_per_rollout: usize,
    /// Mini-batches of groups that a rollout is cut into; each is one
    /// optimizer update, with a loss normaliser of its own. At most
    /// `prompts_per_step`. Default 1: every update uses the whole rollout.
    #[serde(default = "count::<1>", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 1_000_000), extend("default" = 1))]
    pub num_mini_batches: usize,
    /// Rounds of sampling until `prompts_per_step` groups have a signal:
    /// groups of equal rewards are dropped, and other problems are sampled in
    /// their place (dynamic sampling, DAPO). Default 1: no group is dropped
    /// or replaced.
    #[serde(default = "count::<1>", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 1000), extend("default" = 1))]
    pub max_sampling_rounds: usize,
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
    /// Estimator of the KL term: `k1`, `k2` or `k3`. Absent means `k3` in the
    /// loss and `k1` in the reward. In the loss `k2` has the gradient of the
    /// KL, `k3` that of the reversed KL, and `k1` none in expectation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_estimator: Option<KlEstimator>,
    /// Where the KL term is: a term of the `loss` at every token, or taken
    /// off the `reward` of an episode, summed over its decoded tokens.
    /// Default `loss`.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "loss"))]
    pub kl_in: KlPlacement,
    /// Whether the KL term in the loss is multiplied by the probability
    /// ratio, which makes the gradient of `k1` and `k3` that of the KL, also
    /// off-policy. Default false.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = false))]
    pub kl_bias_correction: bool,
    /// Weight of the entropy bonus: the mean entropy of the policy at trained
    /// tokens, by the weights of `loss_aggregation`, is taken off the loss.
    /// Default 0.
    #[serde(default = "zero", skip_serializing_if = "is_default")]
    #[schemars(range(min = 0.0), extend("default" = 0.0))]
    pub entropy_coefficient: f64,
    /// The policy that the probability ratio is against: the `sampler`, by
    /// the log-probabilities that it stored, or the `trainer` as it was
    /// before the first update of the step. Default `sampler`, which
    /// corrects what the two differ by and needs no score pass.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "sampler"))]
    pub logp_old: OldPolicy,
    /// Weights against a mismatch of sampler and trainer; needs
    /// `logp_old = "trainer"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler_correction: Option<SamplerCorrectionSection>,
    /// How rewards become advantages. The paper does not say. Default
    /// `mean_centred`: dividing by the group's standard deviation lets the
    /// small concurrency reward outweigh accuracy where accuracy is equal.
    #[serde(default)]
    pub advantage: Advantage,
    /// Added to the standard deviation in `mean_std`. Default 1e-4.
    #[serde(default = "crate::defaults::advantage_eps")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub advantage_eps: f64,
    /// What an advantage is relative to: all `episode`s of the group, so that
    /// the organizer and its workers share one, or the rows of one `role`:
    /// workers are then compared with the workers of the group. Default
    /// `episode`, as in the paper.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "episode"))]
    pub advantage_group: AdvantageGroup,
    /// Factor on the advantage of workers. Default 1, as in the paper; 0
    /// trains organizers only.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0.0), extend("default" = 1.0))]
    pub worker_advantage_weight: f64,
    /// Leave agents that were cut at a token limit out of the loss; where the
    /// organizer was, the whole episode. Their rewards stay in the group.
    /// Default false.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = false))]
    pub mask_truncated: bool,
    /// What the loss is divided by. Default `token_mean`.
    #[serde(default)]
    pub loss_aggregation: LossAggregation,
    /// Tokens per episode that `constant_length` divides by.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub constant_length_tokens: Option<usize>,
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
    /// which is then computed once: the prompt of a
    /// group, the worker prompt's head. The gradient
    /// does not depend on it. Default true.
    #[serde(default = "yes")]
    pub share_prefixes: bool,
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
    /// for; where `reward.lambda_final` moves the weight of concurrency, the
    /// rewards of all steps are compared under that final weight. A step has
    /// few episodes, so its figures are partly chance: those that begin with
    /// `validation_` are of the last evaluation, and need `eval_every_steps`.
    #[serde(default)]
    pub best_metric: GrpoMetric,
    /// Steps between evaluations on validation problems, and one after the
    /// last step; absent means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub eval_every_steps: Option<usize>,
    /// Validation problems to use, a sample by the recipe's `seed`, the same
    /// one each time; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_ITEMS))]
    pub eval_num_problems: Option<usize>,
    /// Episodes per validation problem; absent means 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub eval_samples_per_problem: Option<usize>,
    /// Sampling temperature of evaluations; 0 takes the likeliest token.
    /// Absent means `temperature`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub eval_temperature: Option<f64>,
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
    /// Policy loss: `[grpo.loss.<name>]` with its options, `clip`, `gspo` or
    /// `cispo`. Absent means `clip`, by `clip_eps_low` and `clip_eps_high`.
    #[serde(default = "clip", skip_serializing_if = "is_clip")]
    pub loss: NamedTable,
    /// AdamW and its schedule.
    pub optimizer: OptimizerSection,
    /// What an episode earns.
    #[serde(default)]
    pub reward: RewardSection,
}

/// Name of the policy loss where the recipe gives none.
const DEFAULT_LOSS: &str = "clip";

fn clip() -> NamedTable {
    NamedTable::new(DEFAULT_LOSS)
}

fn is_clip(loss: &NamedTable) -> bool {
    *loss == clip()
}

impl GrpoSection {
    /// The estimator of the KL term, as written or by its place.
    pub fn kl_estimator(&self) -> KlEstimator {
        self.kl_estimator.unwrap_or(match self.kl_in {
            KlPlacement::Loss => KlEstimator::K3,
            KlPlacement::Reward => KlEstimator::K1,
        })
    }

    /// Whether the reference model is scored to take a penalty off rewards.
    pub fn has_kl_in_reward(&self) -> bool {
        self.kl_in == KlPlacement::Reward && self.kl_beta > 0.0
    }
}

/// Estimator of the KL from the policy to the reference at a sampled token, with `d = logp_ref - logp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `-d`.
    K1,
    /// `d^2 / 2`.
    K2,
    /// `exp(d) - d - 1`.
    K3,
}

/// Where the KL term is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlPlacement {
    /// A term of the loss.
    #[default]
    Loss,
    /// Taken off the reward.
    Reward,
}

/// The policy that the probability ratio is against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OldPolicy {
    /// As the sampler stored it.
    #[default]
    Sampler,
    /// As the trainer computes it before the first update of the step.
    Trainer,
}

/// Episodes or rows that an advantage is relative to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageGroup {
    /// All episodes of the problem.
    #[default]
    Episode,
    /// The organizers of the problem's episodes, or their workers.
    Role,
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
    /// Reward minus the mean of the group's other rewards (leave-one-out).
    Rloo,
}

impl Advantage {
    /// Name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::MeanCentred => "mean_centred",
            Self::MeanStd => "mean_std",
            Self::Rloo => "rloo",
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
