//! `trainer/state.json`: what a run needs besides weights and moments to go on as if it had never stopped.

use std::collections::BTreeMap;
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, KeyDifference, Result};

/// Where it lies inside a checkpoint.
pub(crate) const STATE_FILE: &str = "trainer/state.json";

/// Progress of a run, and what it was run with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// What checkpoints may be compared by, as the step measured it, or the last step that did.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
    /// Values that the recipe leaves to the program, as they were chosen when the run began.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub chosen: BTreeMap<String, String>,
    /// The best evaluation so far, where the recipe has a run end early by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestEvaluation>,
    /// Whether evaluations ended the run before its last step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped_early: bool,
    /// Id of the run that the checkpoint is of, the same from its first step to its last; empty in checkpoints of earlier
    /// versions. Retention removes nothing of other runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
}

/// The best evaluation of a run, and how long ago it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BestEvaluation {
    /// Best value so far; `None` before the first evaluation.
    pub value: Option<f64>,
    /// Evaluations since.
    pub evaluations_since: u64,
}

/// An id for a run that begins.
pub fn new_run_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |since| since.as_nanos());
    format!("{nanos:x}-{:x}", std::process::id())
}

impl TrainerState {
    /// The state in a checkpoint's folder, without a look at anything else; `None` where it cannot be read.
    pub fn read(dir: &Path) -> Option<Self> {
        let bytes = fs::read(dir.join(STATE_FILE)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Goes on from where a checkpoint stands.
    pub fn take_progress_of(&mut self, checkpoint: &Self) {
        self.step = checkpoint.step;
        self.num_updates = checkpoint.num_updates;
        self.metrics_bytes = checkpoint.metrics_bytes;
        self.figures.clone_from(&checkpoint.figures);
        self.chosen.clone_from(&checkpoint.chosen);
        self.best = checkpoint.best;
        self.run.clone_from(&checkpoint.run);
        if self.initial_model.is_none() {
            self.initial_model.clone_from(&checkpoint.initial_model);
        }
    }

    /// Refuses to go on with another recipe, other data or another initial model than the checkpoint in `dir` was made with,
    /// but for what `allowed` names: keys and sections of the recipe, `dataset`, `initial_model`. Returns these differences.
    ///
    /// An initial model that is not at hand any more is no difference: the run does not need it to go on.
    ///
    /// # Errors
    /// Names what differs.
    pub fn check_same_run(
        &self,
        now: &Self,
        dir: &Path,
        allowed: &[String],
    ) -> Result<Vec<KeyDifference>> {
        if self.stage != now.stage {
            return Err(Error::WrongStage {
                dir: dir.to_owned(),
                found: self.stage.clone(),
                expected: now.stage.clone(),
            });
        }
        let is_allowed = |key: &str| {
            allowed.iter().any(|name| {
                key.strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let (mut accepted, refused): (Vec<_>, Vec<_>) = self
            .recipe_differences(now)
            .into_iter()
            .partition(|difference| is_allowed(&difference.key));
        if !refused.is_empty() {
            return Err(Error::RecipeChanged {
                dir: dir.to_owned(),
                differences: refused,
            });
        }
        if self.dataset != now.dataset {
            if !is_allowed(DATASET) {
                return Err(Error::DatasetChanged {
                    dir: dir.to_owned(),
                    before: self.dataset.clone(),
                    now: now.dataset.clone(),
                });
            }
            accepted.push(difference(DATASET, &self.dataset, &now.dataset));
        }
        if let (Some(before), Some(now)) = (&self.initial_model, &now.initial_model)
            && before != now
        {
            if !is_allowed(INITIAL_MODEL) {
                return Err(Error::InitialModelChanged {
                    dir: dir.to_owned(),
                    before: before.clone(),
                    now: now.clone(),
                });
            }
            accepted.push(difference(INITIAL_MODEL, before, now));
        }
        Ok(accepted)
    }

    fn recipe_differences(&self, now: &Self) -> Vec<KeyDifference> {
        let keys: std::collections::BTreeSet<&String> =
            self.recipe.keys().chain(now.recipe.keys()).collect();
        keys.into_iter()
            .filter(|key| self.recipe.get(*key) != now.recipe.get(*key))
            .map(|key| KeyDifference {
                key: key.clone(),
                before: self.recipe.get(key).cloned(),
                now: now.recipe.get(key).cloned(),
            })
            .collect()
    }
}

/// The name of the training data among what may change.
const DATASET: &str = asyncthink_recipe::CHANGEABLE_INPUTS[0];

/// The name of the model that a stage begins with.
const INITIAL_MODEL: &str = asyncthink_recipe::CHANGEABLE_INPUTS[1];

fn difference(key: &str, before: &str, now: &str) -> KeyDifference {
    KeyDifference {
        key: key.to_owned(),
        before: Some(before.to_owned()),
        now: Some(now.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> TrainerState {
        TrainerState {
            stage: "sft".into(),
            step: 1,
            num_updates: 1,
            metrics_bytes: 0,
            seed: 1,
            dataset: "d".into(),
            initial_model: Some("a".into()),
            recipe: [
                ("sft.num_steps".to_owned(), "5".to_owned()),
                ("sft.optimizer.eps".to_owned(), "1".to_owned()),
            ]
            .into(),
            figures: BTreeMap::new(),
            chosen: BTreeMap::new(),
            best: None,
            stopped_early: false,
            run: String::new(),
        }
    }

    fn check(before: &TrainerState, now: &TrainerState, allowed: &[&str]) -> Result<Vec<String>> {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let accepted = before.check_same_run(now, Path::new("c"), &allowed)?;
        Ok(accepted.into_iter().map(|one| one.key).collect())
    }

    #[test]
    fn changed_recipe_and_data_are_refused_by_name() {
        let before = state();
        let mut now = before.clone();
        assert!(check(&before, &now, &[]).is_ok());
        now.dataset = "other".into();
        let refused = check(&before, &now, &["initial_model", "data"]);
        assert!(matches!(refused, Err(Error::DatasetChanged { .. })));
        now.dataset = before.dataset.clone();
        now.initial_model = Some("b".into());
        let refused = check(&before, &now, &["dataset"]);
        assert!(matches!(refused, Err(Error::InitialModelChanged { .. })));
        // What is not known on one side is no difference.
        now.initial_model = None;
        assert!(check(&before, &now, &[]).is_ok());
        assert!(check(&now, &before, &[]).is_ok());
        now.recipe.insert("sft.num_steps".into(), "6".into());
        let error = check(&before, &now, &["dataset", "sft.num", "sft.optimizer"]).unwrap_err();
        assert!(error.to_string().contains("`sft.num_steps` is 6, was 5"));
        let hint = error.hint().unwrap();
        assert!(
            hint.contains(r#"allow_changed=["sft.num_steps"]"#),
            "{hint}"
        );
        now.stage = "grpo".into();
        assert!(matches!(
            check(&before, &now, &["sft"]),
            Err(Error::WrongStage { .. })
        ));
    }

    #[test]
    fn changes_that_are_allowed_by_name_are_told() {
        let before = state();
        let mut now = before.clone();
        now.recipe.insert("sft.num_steps".into(), "6".into());
        now.recipe.remove("sft.optimizer.eps");
        now.dataset = "other".into();
        now.initial_model = Some("b".into());
        let inputs = ["dataset", "initial_model"];
        let by_key = [&inputs[..], &["sft.num_steps", "sft.optimizer.eps"]].concat();
        let by_section = [&inputs[..], &["sft"]].concat();
        for allowed in [by_key, by_section] {
            assert_eq!(
                check(&before, &now, &allowed).unwrap(),
                [
                    "sft.num_steps",
                    "sft.optimizer.eps",
                    "dataset",
                    "initial_model"
                ]
            );
        }
    }
}
