//! `trainer/state.json`: what a run needs besides weights and moments to go on as if it had never stopped.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, KeyDifference, Result};

/// Progress of a run, and what it was run with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainerState {
    /// `sft` or `grpo`.
    pub stage: String,
    /// Completed steps.
    pub step: u64,
    /// Optimizer updates so far.
    pub num_updates: u64,
    /// Length of `metrics.jsonl` at this point.
    pub metrics_bytes: u64,
    /// The run's seed. With the step it determines every draw still to come.
    pub seed: u64,
    /// Fingerprint of the training data.
    pub dataset: String,
    /// Identity of the model that the stage began with, where another stage or the user may change it meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_model: Option<String>,
    /// The recipe's keys that shape the numbers of the run, as JSON values.
    pub recipe: BTreeMap<String, String>,
}

impl TrainerState {
    /// Goes on from where a checkpoint stands.
    pub(crate) fn take_progress_of(&mut self, checkpoint: &Self) {
        self.step = checkpoint.step;
        self.num_updates = checkpoint.num_updates;
        self.metrics_bytes = checkpoint.metrics_bytes;
        if self.initial_model.is_none() {
            self.initial_model.clone_from(&checkpoint.initial_model);
        }
    }

    /// Refuses to go on with another recipe, other data or another initial model than the checkpoint in `dir` was made with.
    ///
    /// An initial model that is not at hand any more is no difference: the run does not need it to go on.
    ///
    /// # Errors
    /// Names what differs.
    pub fn check_same_run(&self, now: &Self, dir: &Path) -> Result<()> {
        if self.stage != now.stage {
            return Err(Error::WrongStage {
                dir: dir.to_owned(),
                found: self.stage.clone(),
                expected: now.stage.clone(),
            });
        }
        let keys: std::collections::BTreeSet<&String> =
            self.recipe.keys().chain(now.recipe.keys()).collect();
        let differences: Vec<KeyDifference> = keys
            .into_iter()
            .filter(|key| self.recipe.get(*key) != now.recipe.get(*key))
            .map(|key| KeyDifference {
                key: key.clone(),
                before: self.recipe.get(key).cloned(),
                now: now.recipe.get(key).cloned(),
            })
            .collect();
        if !differences.is_empty() {
            return Err(Error::RecipeChanged {
                dir: dir.to_owned(),
                differences,
            });
        }
        if self.dataset != now.dataset {
            return Err(Error::DatasetChanged {
                dir: dir.to_owned(),
                before: self.dataset.clone(),
                now: now.dataset.clone(),
            });
        }
        match (&self.initial_model, &now.initial_model) {
            (Some(before), Some(now)) if before != now => Err(Error::InitialModelChanged {
                dir: dir.to_owned(),
                before: before.clone(),
                now: now.clone(),
            }),
            _ => Ok(()),
        }
    }
}
