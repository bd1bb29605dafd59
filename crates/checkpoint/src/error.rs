//! Errors of checkpoints and of the run folder.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file of the run's data could not be read or written.
    #[error(transparent)]
    Data(#[from] asyncthink_data::Error),
    /// A model folder could not be read.
    #[error(transparent)]
    Model(#[from] asyncthink_model::Error),
    /// A checkpoint is damaged.
    #[error("checkpoint `{dir}` is damaged: `{file}`: {reason}")]
    DamagedCheckpoint {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// The file inside it.
        file: String,
        /// Reason it is damaged.
        reason: String,
    },
    /// The newest checkpoint is not there.
    #[error("checkpoint `{dir}`, which `latest` names, is gone")]
    CheckpointGone {
        /// Where it should be.
        dir: PathBuf,
    },
    /// Files that other ranks wrote are not visible to the first rank, so the checkpoint cannot be published.
    #[error("checkpoint `{dir}` is not complete after {} s: {}", waited.as_secs(), missing.join("; "))]
    MissingParts {
        /// The folder that it is written to.
        dir: PathBuf,
        /// The files, each with its rank and what is wrong.
        missing: Vec<String>,
        /// How long they were waited for.
        waited: Duration,
    },
    /// Checkpoints exist and none of them can be read.
    #[error("no checkpoint in `{dir}` is readable; the newest fails with: {newest}")]
    NoReadableCheckpoint {
        /// The folder of checkpoints.
        dir: PathBuf,
        /// Error of the newest one.
        newest: Box<Error>,
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
    /// A step of the work failed.
    #[error("{context}: {source}")]
    Stage {
        /// Operation that failed.
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

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn stage(
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Stage {
            context: context.into(),
            source: source.into(),
        }
    }

    /// Whether a file is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == std::io::ErrorKind::NotFound)
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        let hint = match self {
            Self::RecipeChanged { differences, .. } => {
                let keys = differences.iter().map(|one| one.key.as_str());
                return Some(allow(&keys.collect::<Vec<_>>()).into());
            }
            Self::DatasetChanged { .. } => return Some(allow(&["dataset"]).into()),
            Self::InitialModelChanged { .. } => return Some(allow(&["initial_model"]).into()),
            Self::DamagedCheckpoint { .. }
            | Self::CheckpointGone { .. }
            | Self::NoReadableCheckpoint { .. } => {
                "give another checkpoint with `--resume DIR`, or start over with `--resume never`"
            }
            Self::MissingParts { .. } => {
                "every rank must write to one folder: put `run_dir` on a file system that all machines share; where that only shows files late, raise `distributed.timeout_secs`"
            }
            Self::RunInUse { .. } => "wait for that process to end, or choose another `run_dir`",
            Self::WrongStage { .. } => "give a checkpoint of the stage that is run",
            _ => return None,
        };
        Some(Cow::Borrowed(hint))
    }

    /// Whether the user's input is at fault, rather than the run.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::DamagedCheckpoint { .. }
                | Self::CheckpointGone { .. }
                | Self::NoReadableCheckpoint { .. }
                | Self::RecipeChanged { .. }
                | Self::DatasetChanged { .. }
                | Self::InitialModelChanged { .. }
                | Self::RunInUse { .. }
                | Self::WrongStage { .. }
        )
    }
}
