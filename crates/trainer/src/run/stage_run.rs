//! A stage under way: progress, resuming, metrics, by all ranks together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use asyncthink_checkpoint::{
    BestEvaluation, Checkpoint, CheckpointStore, TrainerState, new_run_id,
};
use asyncthink_distributed::{AdamW, Ranks};
use serde::Serialize;

use super::exchanged_bytes;
use super::folder::{Launchers, StageFolder};
use super::options::{RunOptions, RunOutcome};
use super::snapshot::PendingSave;
use crate::error::{Error, Result};
use crate::observer::{Observer, StopFlag};
use crate::settings::{EarlyStopping, RunSettings, SaveSettings};
use asyncthink_gradient::PolicyModel;
use asyncthink_metrics::{ByteCounts, StepClock};

/// A stage under way.
#[derive(Debug)]
pub(crate) struct StageRun {
    /// The first field, so that its end is waited for before the folder is let go of.
    pub(super) pending: Option<PendingSave>,
    pub(super) ranks: Arc<Ranks>,
    /// What the first rank alone reads and writes.
    pub(super) folder: Option<StageFolder>,
    /// Where checkpoints lie; the first rank writes it, the others add their part.
    pub(super) store: CheckpointStore,
    pub(super) state: TrainerState,
    pub(super) save: SaveSettings,
    pub(super) num_steps: u64,
    pub(super) log_every_steps: u64,
    pub(super) saved: Option<(u64, PathBuf)>,
    /// Spent on checkpoints and not yet booked.
    pub(super) save_seconds: f64,
    /// What this rank had put in when the last step's line was written; none before the first.
    pub(super) exchanged_at_line: Option<ByteCounts>,
    early_stopping: Option<EarlyStopping>,
}

/// What a run is made from, besides its recipe.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Fingerprint of the training data.
    pub(crate) dataset: String,
    /// Identity of the model to start from, where it is not determined by the recipe and is at hand.
    pub(crate) initial_model: Option<String>,
}

impl Origin {
    /// Of a run whose initial model the recipe determines.
    pub(crate) fn of_data(dataset: String) -> Self {
        Self {
            dataset,
            initial_model: None,
        }
    }
}

impl StageRun {
    /// Locks and opens the stage's folder and finds what to resume from. The recipe and the data must be those of the
    /// checkpoint, and the same on all ranks; nothing is changed before that is known.
    pub(crate) fn open(
        settings: &RunSettings,
        origin: Origin,
        options: &RunOptions,
        observer: &mut dyn Observer,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let ranks = Arc::clone(&options.ranks);
        let (stage, save) = (settings.stage, settings.save);
        ranks.set_phase(&format!("{}: opening the run", stage.name()));
        let mut state = TrainerState {
            stage: stage.name().to_owned(),
            step: 0,
            num_updates: 0,
            metrics_bytes: 0,
            seed: settings.seed,
            dataset: origin.dataset,
            initial_model: origin.initial_model,
            recipe: settings.recipe_keys.clone(),
            figures: BTreeMap::new(),
            chosen: BTreeMap::new(),
            best: None,
            stopped_early: false,
            run: String::new(),
        };
        ranks.check_same("recipe, data and initial model", &to_json(&state)?)?;
        let launchers = Launchers::of(options)?;
        let opened = ranks
            .is_first()
            .then(|| StageFolder::open(settings, &state, options, &launchers, observer));
        let opened = opened.transpose().map_err(Error::before_work);
        let (folder, checkpoint) = ranks.agree(opened)?.unzip();
        let checkpoint = of_first_rank(checkpoint.flatten(), &ranks)?;
        if let Some(checkpoint) = &checkpoint {
            state.take_progress_of(&checkpoint.state);
        } else {
            let id = ranks.first_rank_bytes(new_run_id().as_bytes())?;
            state.run = String::from_utf8_lossy(&id).into_owned();
        }
        let checkpoints = settings.layout.checkpoints(stage);
        let store = CheckpointStore::attach(&checkpoints, save.retention);
        let saved = checkpoint
            .as_ref()
            .map(|checkpoint| (state.step, store.dir_of(checkpoint.state.step)));
        let mut run = Self {
            pending: None,
            ranks,
            folder,
            store,
            state,
            save,
            num_steps: settings.num_steps,
            log_every_steps: settings.log_every_steps,
            saved,
            save_seconds: 0.0,
            exchanged_at_line: None,
            early_stopping: settings.early_stopping,
        };
        run.state.stopped_early = run.is_out_of_patience();
        Ok((run, checkpoint))
    }

    /// Fails on every rank unless all have the same weights and begin at the same step.
    pub(crate) fn check_same_start(&self, model: &PolicyModel) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        let text = format!("step {}{}", self.state.step, model.digest()?);
        Ok(self.ranks.check_same("the weights to begin with", &text)?)
    }

    /// Names what this rank does in the step under way.
    pub(crate) fn set_phase(&self, what: &str) {
        let step = self.state.step + 1;
        self.ranks
            .set_phase(&format!("{} step {step}: {what}", self.state.stage));
    }

    /// The signal that some rank was asked to stop by; the same answer on all.
    pub(crate) fn stop_requested(&self, stop: &StopFlag) -> Result<Option<i32>> {
        Ok(self.ranks.stop_requested(stop.requested())?)
    }

    /// Writes the metrics of step `step` where they are due: every `log_every_steps` steps, at the last step, and where
    /// `is_due` says so.
    pub(crate) fn write_metrics(
        &mut self,
        step: u64,
        is_due: bool,
        line: &impl Serialize,
    ) -> Result<()> {
        let is_due = is_due || step == self.num_steps || step.is_multiple_of(self.log_every_steps);
        match &mut self.folder {
            Some(folder) if is_due => folder.write_metrics(line),
            _ => Ok(()),
        }
    }

    /// A clock for the next step, which everything since the line of the last one is booked on: time and bytes of a save.
    pub(crate) fn clock(&mut self) -> StepClock {
        let at_line = self.exchanged_at_line.take();
        let exchanged_before = at_line.unwrap_or_else(|| exchanged_bytes(&self.ranks));
        StepClock::after_saving(std::mem::take(&mut self.save_seconds), exchanged_before)
    }

    /// Values that are left to the program, as a checkpoint has them and as this run's will.
    pub(crate) fn chosen(&mut self) -> &mut BTreeMap<String, String> {
        &mut self.state.chosen
    }

    /// Steps done.
    pub(crate) fn step(&self) -> u64 {
        self.state.step
    }

    /// Whether the run is complete: it did all steps, or its evaluations ended it.
    pub(crate) fn is_finished(&self) -> bool {
        self.state.step >= self.num_steps || self.state.stopped_early
    }

    /// Takes the figure that an evaluation measured, of the metric that checkpoints are compared by, and ends the run where
    /// that has not been better for long enough. An evaluation without a figure is not better. All ranks call it with the
    /// same figure.
    pub(crate) fn note_evaluation(&mut self, value: Option<f64>, observer: &mut dyn Observer) {
        let Some(EarlyStopping {
            patience,
            threshold,
        }) = self.early_stopping
        else {
            return;
        };
        let less_is_better = self.save.retention.less_is_better;
        let best = self.state.best.get_or_insert_default();
        let is_better = match (value, best.value) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(value), Some(best)) if less_is_better => value < best - threshold,
            (Some(value), Some(best)) => value > best + threshold,
        };
        if is_better {
            *best = BestEvaluation {
                value,
                evaluations_since: 0,
            };
            return;
        }
        best.evaluations_since += 1;
        if self.is_out_of_patience() && self.state.step + 1 < self.num_steps {
            self.state.stopped_early = true;
            observer.warning(&format!(
                "early stopping after step {}: `{}` has not been better for {patience} evaluations",
                self.state.step + 1,
                self.save.retention.metric,
            ));
        }
    }

    fn is_out_of_patience(&self) -> bool {
        let since = self.state.best.map_or(0, |best| best.evaluations_since);
        let patience = self.early_stopping.map(|stopping| stopping.patience);
        patience.is_some_and(|patience| since >= patience)
    }

    /// Notes a figure of the step under way, for its checkpoint to be compared by.
    pub(crate) fn note(&mut self, name: &str, figure: Option<f64>) {
        match figure {
            Some(value) => self.state.figures.insert(name.to_owned(), value),
            None => self.state.figures.remove(name),
        };
    }

    /// The outcome of a run that did all its steps.
    pub(crate) fn finished(&self) -> RunOutcome {
        RunOutcome::Finished {
            model: self.store.dir_of(self.state.step),
            num_steps: self.state.step,
        }
    }

    /// Saves and gives the outcome of a run that was asked to stop, on all ranks together.
    pub(crate) fn stop(
        &mut self,
        stop: &StopFlag,
        model: &PolicyModel,
        optimizer: &AdamW,
        observer: &mut dyn Observer,
    ) -> Result<RunOutcome> {
        let signal = self.stop_requested(stop)?.unwrap_or_default();
        if self.state.step > 0 {
            self.save(model, optimizer, observer)?;
        }
        let checkpoint = self.saved.as_ref().map(|(_, dir)| dir.clone());
        Ok(RunOutcome::Stopped {
            signal,
            checkpoint,
            step: self.state.step,
        })
    }
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::stage("comparing ranks", error))
}

/// What the first rank found to resume from, on every rank.
fn of_first_rank(found: Option<Checkpoint>, ranks: &Ranks) -> Result<Option<Checkpoint>> {
    if ranks.is_alone() {
        return Ok(found);
    }
    let told = found.map(|checkpoint| (checkpoint.dir, checkpoint.state));
    let bytes = ranks.first_rank_bytes(to_json(&told)?.as_bytes())?;
    let told: Option<(PathBuf, TrainerState)> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::stage("reading what the first rank found", error))?;
    Ok(told.map(|(dir, state)| Checkpoint {
        dir,
        state,
        altered: Vec::new(),
    }))
}
