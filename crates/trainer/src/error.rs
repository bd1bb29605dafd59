//! Errors of training.

use std::borrow::Cow;
use std::path::PathBuf;

use asyncthink_distributed::SharedFailure;

use crate::memory::{Remedy, bytes_text};
use crate::rank_folder::RankFolder;

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
    /// A rank failed or was lost.
    #[error(transparent)]
    Distributed(#[from] asyncthink_distributed::Error),
    /// A checkpoint or the folder of the run is not what it should be.
    #[error(transparent)]
    Checkpoint(#[from] asyncthink_checkpoint::Error),
    /// Metrics could not be written.
    #[error(transparent)]
    Metrics(#[from] asyncthink_metrics::Error),
    /// A gradient or scores could not be computed.
    #[error(transparent)]
    Gradient(#[from] asyncthink_gradient::Error),
    /// The recipe names what does not exist or cannot be.
    #[error("`{key}`: {reason}")]
    Setting {
        /// The recipe's key.
        key: &'static str,
        /// Why it is refused.
        reason: String,
    },
    /// Ranks do not see what the first one writes into the run folder.
    #[error(
        "the ranks do not share a run folder: what {first} writes is not seen by {}",
        apart.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    FolderNotShared {
        /// The first rank.
        first: RankFolder,
        /// Ranks that have another folder.
        apart: Vec<RankFolder>,
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
    /// Weights or moments stopped being numbers, so that they are not saved.
    #[error("step {step} is not saved: `{tensor}` holds values that are not finite")]
    NonFiniteTensor {
        /// The step, counted from 1.
        step: u64,
        /// The first such tensor.
        tensor: String,
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
    /// A run needs more memory than there is.
    #[error(
        "the run needs {} of the {place} by prediction, and it may take {}: {table}",
        bytes_text(*needed_bytes),
        bytes_text(*limit_bytes)
    )]
    Memory {
        /// Which memory.
        place: &'static str,
        /// Bytes that the run is predicted to need.
        needed_bytes: u64,
        /// Bytes that are free, or that the recipe allows.
        limit_bytes: u64,
        /// Parts of what is needed.
        table: String,
        /// Changes of the recipe that save memory, those that save most first.
        remedies: Vec<Remedy>,
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
    /// A stage was asked to start from an earlier one that has left no model.
    #[error("`{path}` holds no trained model to start from")]
    NoInitialModel {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The model to start from is of a stage that has not done its steps, or is doing them.
    #[error("`{path}` is not a finished model: `{stage}` {}, at step {step} of {num_steps}", if *.is_running { "is still running" } else { "has stopped" })]
    UnfinishedStage {
        /// The model's folder.
        path: PathBuf,
        /// The stage that it is of.
        stage: &'static str,
        /// Whether a process works on the stage.
        is_running: bool,
        /// Steps that the model has been trained for.
        step: u64,
        /// Steps that were asked for.
        num_steps: u64,
    },
    /// The folder of the run cannot be written before anything is done.
    #[error("the run's folder cannot be used: {source}")]
    RunFolder {
        /// Why not; it names the file.
        source: std::io::Error,
    },
    /// A part of the pipeline outside this crate failed.
    #[error("{context}: {source}")]
    Stage {
        /// Operation that failed.
        context: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Non-finite value found by an engine; each rank samples episodes of its own.
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

    /// Says of an error of a file that it is the run's folder that cannot be used, as long as nothing is done.
    pub(crate) fn before_work(self) -> Self {
        match self {
            Self::Io(source)
            | Self::Checkpoint(asyncthink_checkpoint::Error::Io(source))
            | Self::Metrics(asyncthink_metrics::Error::Io(source)) => Self::RunFolder { source },
            other => other,
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
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::Distributed(error) => error.hint().map(Cow::Borrowed),
            Self::Memory { remedies, .. } => Some(Cow::Owned(memory_hint(remedies))),
            _ => self.plain_hint().map(Cow::Borrowed),
        }
    }

    fn plain_hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NonFinite { .. } => {
                "lower `optimizer.learning_rate` or `optimizer.max_grad_norm` and start over with `--resume never`"
            }
            Self::NonFiniteTensor { .. } => {
                "the checkpoints before it are as they were; lower `optimizer.learning_rate` or `optimizer.weight_decay`"
            }
            Self::UnfinishedStage { .. } => {
                "let `sft` finish first (the same command goes on from where it stopped), or start from this model all the same \
                 by `--set grpo.init_from_unfinished=true`"
            }
            Self::RunFolder { .. } => {
                "make `run_dir` a folder that can be written, or choose another"
            }
            Self::LogprobMismatch { .. } => {
                "use float32, raise `grpo.max_logprob_mismatch`, or remove it to only measure the difference"
            }
            Self::MissingSection { .. } => "add the section to the recipe",
            Self::FolderNotShared { .. } => {
                "every rank writes a part of each checkpoint: put `run_dir` on a file system that all machines share (NFS, Lustre or the like), \
                 under one path on all of them"
            }
            Self::TooManyRanks { .. } => "raise it, or start fewer ranks",
            Self::NoRows { .. } => "run `asyncthink-train synth` with this recipe first",
            Self::RowTooLong { .. } => "raise the limit or shorten the budgets in `[protocol]`",
            Self::NoInitialModel { .. } => "run `asyncthink-train sft` with this recipe first",
            Self::Model(asyncthink_model::Error::VocabularyTooLarge { .. }) => {
                "the folder mixes the files of two models: fetch it again"
            }
            Self::Model(asyncthink_model::Error::OtherAdapters { .. }) => {
                "give `[model.lora]` those values, or merge the adapters first (`model.lora.save_merged`)"
            }
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
        match self {
            Self::Checkpoint(error) => error.is_input(),
            Self::Distributed(error) => error.is_input(),
            Self::Setting { .. }
            | Self::MissingSection { .. }
            | Self::TooManyRanks { .. }
            | Self::FolderNotShared { .. }
            | Self::NoRows { .. }
            | Self::RowTooLong { .. }
            | Self::NoInitialModel { .. }
            | Self::UnfinishedStage { .. }
            | Self::RunFolder { .. }
            | Self::Memory { .. }
            | Self::Model(
                asyncthink_model::Error::VocabularyTooLarge { .. }
                | asyncthink_model::Error::OtherAdapters { .. },
            ) => true,
            _ => false,
        }
    }
}

fn memory_hint(remedies: &[Remedy]) -> String {
    let each = remedies.iter().map(|remedy| {
        let saved = bytes_text(remedy.saved_bytes);
        format!("`{}` saves {saved}", remedy.change)
    });
    let mut all: Vec<String> = each.collect();
    all.push(
        "`memory.budget` says how much a run may take, where the prediction is wrong".to_owned(),
    );
    all.join("; ")
}

impl SharedFailure for Error {
    fn is_input(&self) -> bool {
        Error::is_input(self)
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
