//! Snapshots of a checkpoint's content, which ranks write while training may go on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use asyncthink_checkpoint::{Contents, Part, PartialCheckpoint, Readme, Task, TrainerState};
use asyncthink_distributed::optimizer_files;
use asyncthink_model::PretrainedModel;
use asyncthink_recipe::FinalDtype;
use asyncthink_rollout::ModelCard;
use fs_err as fs;
use serde_json::Value;
use tch::Kind;

use crate::error::{Error, Result};

/// Where the last checkpoint of a run with adapters holds the whole model, if the recipe asks for it.
const MERGED_FOLDER: &str = "merged";

/// Part of a checkpoint that the first rank writes besides its moments.
#[derive(Debug)]
pub(super) struct ModelSnapshot {
    pub(super) partial: PartialCheckpoint,
    pub(super) model: PretrainedModel,
    pub(super) card: ModelCard,
    pub(super) readme: Readme,
    pub(super) state: TrainerState,
    /// The newest line of the metrics.
    pub(super) latest: Option<Value>,
    /// Whether a model with adapters is written as a whole too.
    pub(super) saves_merged: bool,
    /// Format of a copy of the whole model.
    pub(super) final_dtype: Option<FinalDtype>,
}

impl ModelSnapshot {
    pub(super) fn write(&self) -> Result<()> {
        let dir = self.partial.dir();
        let contents = match self.model.decoder.adapters() {
            Some(_) => Contents::Adapters,
            None => Contents::Model,
        };
        self.model.save(dir)?;
        self.write_cards(dir, contents)?;
        if self.saves_merged {
            let merged = dir.join(MERGED_FOLDER);
            fs::create_dir_all(&merged)?;
            self.model.save_merged(&merged)?;
            self.write_cards(&merged, Contents::Model)?;
        }
        if let Some(dtype) = self.final_dtype {
            let copy = dir.join(dtype.name());
            fs::create_dir_all(&copy)?;
            let kind = match dtype {
                FinalDtype::Bf16 => Kind::BFloat16,
            };
            self.model.save_as(&copy, kind)?;
            self.write_cards(&copy, Contents::Model)?;
        }
        Ok(())
    }

    fn write_cards(&self, dir: &Path, contents: Contents) -> Result<()> {
        self.card.write(dir)?;
        let latest = self.latest.as_ref();
        Ok(self.readme.write(dir, &self.state, latest, contents)?)
    }
}

/// One rank's part of a checkpoint.
pub(super) struct RankSnapshot {
    pub(super) dir: PathBuf,
    pub(super) moments: optimizer_files::Share,
    /// The first rank's.
    pub(super) model: Option<ModelSnapshot>,
}

impl RankSnapshot {
    pub(super) fn write(&self) -> Result<()> {
        if let Some(model) = &self.model {
            model.write()?;
        }
        Ok(self.moments.write(&self.dir)?)
    }

    /// Files that this rank wrote beside those of the first.
    pub(super) fn part(&self) -> Result<Part> {
        Ok(Part::of(&self.dir, self.moments.file_name())?)
    }
}

/// A checkpoint under way.
#[derive(Debug)]
pub(super) struct PendingSave {
    pub(super) state: TrainerState,
    /// The first rank's.
    pub(super) partial: Option<PartialCheckpoint>,
    pub(super) task: Task<Error>,
    /// This rank's file, once it is written.
    pub(super) part: Arc<OnceLock<Part>>,
    /// Whether the task is the last one before the checkpoint gets its name.
    pub(super) is_sealing: bool,
}
