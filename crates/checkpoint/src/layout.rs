//! Where a run keeps its files.

use std::path::{Path, PathBuf};

use asyncthink_data::{SynthFolder, write_bytes_atomic};
use asyncthink_recipe::Stage;

use crate::store::newest_model;

/// The folder of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLayout {
    root: PathBuf,
}

impl RunLayout {
    /// The layout below a recipe's `run_dir`.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            root: run_dir.to_owned(),
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the stage `synth` leaves for the others.
    pub fn synth(&self) -> SynthFolder {
        SynthFolder::new(&self.root)
    }

    /// Folder of a stage.
    pub fn stage(&self, stage: Stage) -> PathBuf {
        self.root.join(stage.name())
    }

    /// Checkpoints of a stage.
    pub fn checkpoints(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("checkpoints")
    }

    /// The newest model of a stage: the symbolic link `latest`, or where a copy of the run has lost it, the newest checkpoint.
    pub fn latest_model(&self, stage: Stage) -> PathBuf {
        newest_model(&self.checkpoints(stage))
    }

    /// Metrics of a stage.
    pub fn metrics(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("metrics.jsonl")
    }

    /// Writes the run's `recipe.toml`: every key with its value, as of the last command that ran;
    /// `resolved` is its text.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_recipe(&self, resolved: &str) -> std::io::Result<()> {
        let text = format!(
            "# Every key of the recipe with its value, written by asyncthink-train {}.\n\n{}",
            env!("CARGO_PKG_VERSION"),
            resolved
        );
        write_bytes_atomic(&self.recipe(), text.as_bytes())
    }

    /// The resolved recipe of the run.
    pub fn recipe(&self) -> PathBuf {
        self.root.join("recipe.toml")
    }

    /// Folder of the episodes that were kept.
    pub fn episodes_folder(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("episodes")
    }

    /// Episodes that a step sampled.
    pub fn episodes(&self, stage: Stage, step: u64) -> PathBuf {
        self.episodes_folder(stage)
            .join(format!("step_{step}.parquet"))
    }
}
