//! What can go wrong while training.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// libtorch refused an operation.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
    /// A kernel of the torch crate refused.
    #[error(transparent)]
    Kernel(#[from] asyncthink_torch::Error),
    /// A model could not be built, loaded or run.
    #[error(transparent)]
    Model(#[from] asyncthink_model::Error),
    /// Rows, tokenizer or Parquet files are not what they should be.
    #[error(transparent)]
    Data(#[from] asyncthink_data::Error),
    /// Sampling episodes failed.
    #[error(transparent)]
    Rollout(#[from] asyncthink_rollout::Error),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] asyncthink_engine::Error),
    /// Another rank has given up; this one is well.
    #[error("rank {rank} failed: {message}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// What it said.
        message: String,
        /// Whether it found its input wrong.
        is_input: bool,
    },
    /// Several ranks of a machine were given one GPU.
    #[error("`device` is `{device}` for all {num_local_ranks} ranks of this machine")]
    SharedGpu {
        /// The recipe's device.
        device: String,
        /// Ranks of this machine.
        num_local_ranks: usize,
    },
    /// A step has fewer things to share out than there are ranks.
    #[error("`{key}` is {count}, fewer than the {world_size} ranks")]
    TooManyRanks {
        /// The recipe's key.
        key: &'static str,
        /// Its value.
        count: usize,
        /// How many ranks there are.
        world_size: usize,
    },
    /// A loss, a gradient or a weight stopped being a number.
    #[error("{what} is not finite at step {step}: {value}")]
    NonFinite {
        /// The step, counted from 1.
        step: u64,
        /// What was looked at.
        what: &'static str,
        /// The value found.
        value: f64,
    },
    /// Trainer and sampler disagree about a token's log-probability by more than the recipe allows.
    #[error(
        "log-probabilities of trainer and sampler differ at step {step}: {max_nats:e} nats, bound {bound_nats:e}"
    )]
    LogprobMismatch {
        /// The step, counted from 1.
        step: u64,
        /// Largest difference of the step.
        max_nats: f64,
        /// The recipe's `grpo.max_logprob_mismatch`.
        bound_nats: f64,
    },
    /// The recipe lacks a section that this command needs.
    #[error("the recipe has no `[{section}]` section")]
    MissingSection {
        /// Name of the section.
        section: &'static str,
    },
    /// There is nothing to train on.
    #[error("nothing to train on: `{path}` is missing or empty")]
    NoRows {
        /// The file or folder.
        path: PathBuf,
    },
    /// A row is longer than the model or the memory budget allows.
    #[error("row {row} has {num_tokens} tokens, more than {limit_name}: {limit_tokens}")]
    RowTooLong {
        /// Index of the row.
        row: usize,
        /// Its length.
        num_tokens: usize,
        /// Which limit it exceeds.
        limit_name: &'static str,
        /// The limit.
        limit_tokens: usize,
    },
    /// A checkpoint is damaged.
    #[error("checkpoint `{dir}` is damaged: `{file}`: {reason}")]
    DamagedCheckpoint {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// The file inside it.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Checkpoints exist and none of them can be read.
    #[error("no checkpoint in `{dir}` is readable; the newest fails with: {newest}")]
    NoReadableCheckpoint {
        /// The folder of checkpoints.
        dir: PathBuf,
        /// Error of the newest one.
        newest: Box<Error>,
    },
    /// A stage was asked to start from an earlier one that has left no model.
    #[error("`{path}` holds no trained model to start from")]
    NoInitialModel {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The recipe is not the one that the checkpoint was trained with.
    #[error("the recipe differs from that of checkpoint `{dir}`: {}", list(.differences))]
    RecipeChanged {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Keys with both values.
        differences: Vec<KeyDifference>,
    },
    /// The training data is not what the checkpoint was trained on.
    #[error("the training data differs from that of checkpoint `{dir}`: `{now}`, was `{before}`")]
    DatasetChanged {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Fingerprint in the checkpoint.
        before: String,
        /// Fingerprint of the data at hand.
        now: String,
    },
    /// The model that the stage began with is not the one that it would begin with now.
    #[error(
        "the model to start from is not the one that checkpoint `{dir}` was trained from: `{now}`, was `{before}`"
    )]
    InitialModelChanged {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Identity in the checkpoint.
        before: String,
        /// Identity of the model at hand.
        now: String,
    },
    /// Another process works in the run's folder.
    #[error("the run is in use: another process works on stage `{stage}` in `{run_dir}`")]
    RunInUse {
        /// Name of the stage.
        stage: String,
        /// The run's folder.
        run_dir: PathBuf,
    },
    /// The checkpoint belongs to the other stage.
    #[error("checkpoint `{dir}` is of stage `{found}`, expected `{expected}`")]
    WrongStage {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Stage that wrote it.
        found: String,
        /// Stage that is running.
        expected: String,
    },
    /// A part of the pipeline outside this crate failed.
    #[error("{context}: {source}")]
    Stage {
        /// What was being done.
        context: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// One key on which two recipes differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDifference {
    /// Dotted key.
    pub key: String,
    /// Value in the checkpoint; `None` if it had none.
    pub before: Option<String>,
    /// Value now; `None` if there is none.
    pub now: Option<String>,
}

impl fmt::Display for KeyDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.before.as_deref().unwrap_or("absent");
        let now = self.now.as_deref().unwrap_or("absent");
        write!(f, "`{}` is {now}, was {before}", self.key)
    }
}

fn list(differences: &[KeyDifference]) -> String {
    let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// How to go on all the same.
fn allow(keys: &[&str]) -> String {
    let quoted: Vec<String> = keys.iter().map(|key| format!("\"{key}\"")).collect();
    format!(
        "restore what was, start over with `--resume never` (the earlier run is kept aside), choose another `run_dir`, or go on \
         with the change by `--set 'allow_changed=[{}]'`",
        quoted.join(", ")
    )
}

/// What an engine finds that is no number; each rank samples episodes of its own.
const SAMPLED_LOGIT: &str = "a logit of the model";

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps the error of another part of the pipeline.
    pub(crate) fn stage(
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Stage {
            context: context.into(),
            source: source.into(),
        }
    }

    /// Names the step in errors that mean divergence.
    pub(crate) fn at_step(self, step: u64) -> Self {
        match self {
            Self::Rollout(asyncthink_rollout::Error::Engine(
                asyncthink_engine::Error::NonFinite(_),
            )) => Self::NonFinite {
                step,
                what: SAMPLED_LOGIT,
                value: f64::NAN,
            },
            other => other,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        let changed = match self {
            Self::RecipeChanged { differences, .. } => {
                let keys = differences.iter().map(|one| one.key.as_str());
                allow(&keys.collect::<Vec<_>>())
            }
            Self::DatasetChanged { .. } => allow(&["dataset"]),
            Self::InitialModelChanged { .. } => allow(&["initial_model"]),
            _ => return self.plain_hint().map(Cow::Borrowed),
        };
        Some(Cow::Owned(changed))
    }

    fn plain_hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NonFinite { .. } => {
                "lower `optimizer.learning_rate` or `optimizer.max_grad_norm` and start over with `--resume never`"
            }
            Self::LogprobMismatch { .. } => {
                "use float32, raise `grpo.max_logprob_mismatch`, or remove it to only measure the difference"
            }
            Self::MissingSection { .. } => "add the section to the recipe",
            Self::OtherRank { .. } => "what that rank said itself tells more, and what to do",
            Self::TooManyRanks { .. } => "raise it, or start fewer ranks",
            Self::SharedGpu { .. } => {
                "write `cuda`: each rank then takes the GPU of its local rank"
            }
            Self::NoRows { .. } => "run `asyncthink-train synth` with this recipe first",
            Self::RowTooLong { .. } => "raise the limit or shorten the budgets in `[protocol]`",
            Self::DamagedCheckpoint { .. } | Self::NoReadableCheckpoint { .. } => {
                "give another checkpoint with `--resume DIR`, or start over with `--resume never`"
            }
            Self::NoInitialModel { .. } => "run `asyncthink-train sft` with this recipe first",
            Self::RunInUse { .. } => "wait for that process to end, or choose another `run_dir`",
            Self::Model(asyncthink_model::Error::VocabularyTooLarge { .. }) => {
                "the folder mixes the files of two models: fetch it again"
            }
            Self::Model(asyncthink_model::Error::OtherAdapters { .. }) => {
                "give `[model.lora]` those values, or merge the adapters first (`model.lora.save_merged`)"
            }
            Self::WrongStage { .. } => "give a checkpoint of the stage that is run",
            _ => return None,
        })
    }

    /// Whether every rank meets this error at the same place, so that they can still act together.
    pub(crate) fn is_of_all_ranks(&self) -> bool {
        match self {
            Self::NonFinite { what, .. } => *what != SAMPLED_LOGIT,
            Self::LogprobMismatch { .. } => true,
            _ => false,
        }
    }

    /// Whether the user's input is at fault, rather than the run.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::OtherRank { is_input: true, .. }
                | Self::MissingSection { .. }
                | Self::TooManyRanks { .. }
                | Self::SharedGpu { .. }
                | Self::NoRows { .. }
                | Self::RowTooLong { .. }
                | Self::DamagedCheckpoint { .. }
                | Self::NoReadableCheckpoint { .. }
                | Self::NoInitialModel { .. }
                | Self::RecipeChanged { .. }
                | Self::DatasetChanged { .. }
                | Self::InitialModelChanged { .. }
                | Self::RunInUse { .. }
                | Self::Model(
                    asyncthink_model::Error::VocabularyTooLarge { .. }
                        | asyncthink_model::Error::OtherAdapters { .. }
                )
                | Self::WrongStage { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_rank_sampled_is_not_an_error_of_all() {
        let sampled = Error::Rollout(asyncthink_rollout::Error::Engine(
            asyncthink_engine::Error::NonFinite(asyncthink_engine::AgentId(1)),
        ))
        .at_step(3);
        assert!(!sampled.is_of_all_ranks(), "{sampled}");
        let loss = Error::NonFinite {
            step: 3,
            what: "the loss",
            value: f64::NAN,
        };
        assert!(loss.is_of_all_ranks());
    }
}
