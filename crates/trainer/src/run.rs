//! What both stages share: the stage's folder, resuming, saving.

use std::path::{Path, PathBuf};
use std::time::Instant;

use asyncthink_data::write_bytes_atomic;
use asyncthink_recipe::{OptimizerSection, Recipe, Schedule, Stage};
use fs_err as fs;

use crate::card::ModelCard;
use crate::checkpoint::{Checkpoint, CheckpointStore, TrainerState, remove, sync};
use crate::error::{Error, Result};
use crate::fingerprint::recipe_keys;
use crate::layout::RunLayout;
use crate::lock::StageLock;
use crate::metrics::{MetricsLog, StepClock};
use crate::models::ModelFiles;
use crate::observer::Observer;
use crate::optimizer::{AdamW, AdamWSettings};
use crate::readme::{Contents, Readme};
use crate::schedule::{Decay, LearningRate};
use crate::tensors;

const OPTIMIZER_FILE: &str = "trainer/optimizer.safetensors";

/// Where the last checkpoint of a run with adapters holds the whole model, if the recipe asks for it.
const MERGED_FOLDER: &str = "merged";

/// Where a run begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// From the newest readable checkpoint, else from the start.
    #[default]
    Auto,
    /// From the start; what an earlier run left is moved aside.
    Never,
    /// From this checkpoint.
    From(PathBuf),
}

/// How to run a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Where the run begins.
    pub resume: Resume,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// All steps are done.
    Finished {
        /// The trained model: the last checkpoint.
        model: PathBuf,
        /// Steps of the run.
        num_steps: u64,
    },
    /// The stop flag was raised.
    Stopped {
        /// The signal that raised it.
        signal: i32,
        /// The checkpoint to resume from; `None` if no step was done.
        checkpoint: Option<PathBuf>,
        /// Steps done.
        step: u64,
    },
}

/// How often a stage saves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SavePolicy {
    pub(crate) every_steps: u64,
    pub(crate) keep: usize,
}

/// The open folder of a stage.
#[derive(Debug)]
pub(crate) struct StageRun {
    store: CheckpointStore,
    pub(crate) metrics: MetricsLog,
    state: TrainerState,
    card: ModelCard,
    readme: Readme,
    save_merged: bool,
    save: SavePolicy,
    num_steps: u64,
    saved: Option<(u64, PathBuf)>,
    /// Spent on checkpoints and not yet booked.
    save_seconds: f64,
    _lock: StageLock,
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
    /// checkpoint; nothing is changed before that is known.
    pub(crate) fn open(
        recipe: &Recipe,
        stage: Stage,
        origin: Origin,
        num_steps: u64,
        save: SavePolicy,
        options: &RunOptions,
        observer: &mut dyn Observer,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let layout = RunLayout::new(&recipe.run_dir);
        let lock = StageLock::acquire(&layout, stage)?;
        let folder = layout.stage(stage);
        let checkpoints = layout.checkpoints(stage);
        recover_replacement(&folder)?;
        let mut state = TrainerState {
            stage: stage.name().to_owned(),
            step: 0,
            num_updates: 0,
            metrics_bytes: 0,
            seed: recipe.seed,
            dataset: origin.dataset,
            initial_model: origin.initial_model,
            recipe: recipe_keys(recipe, stage)?,
        };
        let mut given = match &options.resume {
            Resume::From(dir) => Some(open_given(dir, &state)?),
            Resume::Never => {
                move_aside(&folder, observer)?;
                None
            }
            Resume::Auto => None,
        };
        if let Some(foreign) = given.take_if(|checkpoint| !is_inside(&checkpoint.dir, &checkpoints))
        {
            replace_by_copy(&folder, &foreign, observer)?;
        }
        let store = CheckpointStore::open(&checkpoints, save.keep)?;
        let checkpoint = match given {
            Some(given) => Some(given),
            None => newest(&store, &state, observer)?,
        };
        if let Some(checkpoint) = &checkpoint {
            state.step = checkpoint.state.step;
            state.num_updates = checkpoint.state.num_updates;
            state.metrics_bytes = checkpoint.state.metrics_bytes;
            if state.initial_model.is_none() {
                state
                    .initial_model
                    .clone_from(&checkpoint.state.initial_model);
            }
            store.rewind_to(state.step)?;
        }
        remove_later_episodes(&layout.episodes_folder(stage), state.step)?;
        write_bytes_atomic(&folder.join("recipe.toml"), recipe.to_toml().as_bytes())?;
        layout.write_recipe(recipe)?;
        let metrics = MetricsLog::open(&layout.metrics(stage), state.metrics_bytes)?;
        if metrics.missing_bytes() > 0 {
            observer.warning(&format!(
                "`{}` lacks its last {} bytes: steps before step {} are missing in it",
                metrics.path().display(),
                metrics.missing_bytes(),
                state.step + 1
            ));
        }
        let saved = checkpoint
            .as_ref()
            .map(|checkpoint| (state.step, store.dir_of(checkpoint.state.step)));
        let run = Self {
            store,
            metrics,
            state,
            card: ModelCard::of(recipe),
            readme: Readme::of(recipe, stage, num_steps),
            save_merged: recipe.lora.as_ref().is_some_and(|lora| lora.save_merged),
            save,
            num_steps,
            saved,
            save_seconds: 0.0,
            _lock: lock,
        };
        Ok((run, checkpoint))
    }

    /// A clock for the next step, which the time of the last save is booked on.
    pub(crate) fn clock(&mut self) -> StepClock {
        StepClock::after_saving(std::mem::take(&mut self.save_seconds))
    }

    /// Steps done.
    pub(crate) fn step(&self) -> u64 {
        self.state.step
    }

    /// Whether the run is complete.
    pub(crate) fn is_finished(&self) -> bool {
        self.state.step >= self.num_steps
    }

    /// Books a finished step; saves if one is due.
    pub(crate) fn finish_step(
        &mut self,
        model: &ModelFiles,
        optimizer: &AdamW,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.state.step += 1;
        if self.state.step.is_multiple_of(self.save.every_steps) || self.is_finished() {
            self.save(model, optimizer, observer)?;
        }
        Ok(())
    }

    /// Saves, unless the newest checkpoint is of this step.
    pub(crate) fn save(
        &mut self,
        model: &ModelFiles,
        optimizer: &AdamW,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if self
            .saved
            .as_ref()
            .is_some_and(|(step, _)| *step == self.state.step)
        {
            return Ok(());
        }
        let started = Instant::now();
        self.state.num_updates = optimizer.num_updates();
        self.state.metrics_bytes = self.metrics.sync()?;
        let card = &self.card;
        let latest = self.metrics.last_line()?;
        let describe = |dir: &Path, contents| {
            self.readme
                .write(dir, &self.state, latest.as_ref(), contents)
        };
        let contents = match model.decoder.adapters() {
            Some(_) => Contents::Adapters,
            None => Contents::Model,
        };
        let writes_merged = self.save_merged && self.is_finished();
        let dir = self.store.save(&self.state, &mut |dir| {
            model.save(dir)?;
            card.write(dir)?;
            describe(dir, contents)?;
            if writes_merged {
                let merged = dir.join(MERGED_FOLDER);
                fs::create_dir_all(&merged)?;
                model.save_merged(&merged)?;
                card.write(&merged)?;
                describe(&merged, Contents::Model)?;
            }
            tensors::save(&dir.join(OPTIMIZER_FILE), &optimizer.state())
        })?;
        self.save_seconds += started.elapsed().as_secs_f64();
        observer.saved(&dir, self.state.step);
        self.saved = Some((self.state.step, dir));
        Ok(())
    }

    /// Saves the last finished step of a run that fails, if the weights are still those of that step, and hands the
    /// error back. A save that fails too changes nothing about the error.
    pub(crate) fn fail(
        &mut self,
        error: Error,
        model: &ModelFiles,
        optimizer: &AdamW,
        num_updates_before: u64,
        observer: &mut dyn Observer,
    ) -> Error {
        let is_good = self.state.step > 0
            && optimizer.num_updates() == num_updates_before
            && model.is_finite().unwrap_or(false);
        if is_good && let Err(error) = self.save(model, optimizer, observer) {
            observer.warning(&format!(
                "the last finished step could not be saved: {error}"
            ));
        }
        error
    }

    /// The outcome of a run that did all its steps.
    pub(crate) fn finished(&self) -> RunOutcome {
        RunOutcome::Finished {
            model: self.store.dir_of(self.state.step),
            num_steps: self.num_steps,
        }
    }

    /// Saves and gives the outcome of a run that was asked to stop.
    pub(crate) fn stop(
        &mut self,
        signal: i32,
        model: &ModelFiles,
        optimizer: &AdamW,
        observer: &mut dyn Observer,
    ) -> Result<RunOutcome> {
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

/// Restores the optimizer's moments from a checkpoint.
pub(crate) fn restore_optimizer(optimizer: &mut AdamW, checkpoint: &Checkpoint) -> Result<()> {
    let state = tensors::load(&checkpoint.dir.join(OPTIMIZER_FILE))?;
    optimizer.restore(state, checkpoint.state.num_updates)
}

/// The optimizer that a recipe's section describes.
pub(crate) fn new_optimizer(model: &mut ModelFiles, section: &OptimizerSection) -> Result<AdamW> {
    model.decoder.set_requires_grad(true);
    let settings = AdamWSettings {
        beta1: section.beta1,
        beta2: section.beta2,
        eps: section.eps,
        weight_decay: section.weight_decay,
    };
    AdamW::new(model.decoder.trained_parameters(), settings)
}

/// The learning rate that a recipe's section describes.
pub(crate) fn learning_rate(section: &OptimizerSection, num_steps: u64) -> LearningRate {
    LearningRate {
        peak: section.learning_rate,
        warmup_steps: section.warmup_steps as u64,
        decay: match section.schedule {
            Schedule::Constant => Decay::Constant,
            Schedule::Linear => Decay::Linear,
            Schedule::Cosine => Decay::Cosine,
        },
        min_ratio: section.min_lr_ratio,
        num_steps,
    }
}

/// Fails if a figure is not a number any more.
pub(crate) fn check_finite(step: u64, what: &'static str, value: f64) -> Result<()> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(Error::NonFinite { step, what, value })
    }
}

fn open_given(dir: &Path, now: &TrainerState) -> Result<Checkpoint> {
    let dir = fs::canonicalize(dir)?;
    let checkpoint = Checkpoint::open(&dir)?;
    checkpoint.state.check_same_run(now, &dir)?;
    Ok(checkpoint)
}

fn newest(
    store: &CheckpointStore,
    now: &TrainerState,
    observer: &mut dyn Observer,
) -> Result<Option<Checkpoint>> {
    let found = store.newest()?;
    if let Some(checkpoint) = &found.checkpoint {
        checkpoint.state.check_same_run(now, &checkpoint.dir)?;
    }
    for error in &found.passed_over {
        observer.warning(&format!("{error}; going back to the checkpoint before it"));
    }
    Ok(found.checkpoint)
}

fn is_inside(dir: &Path, folder: &Path) -> bool {
    folder
        .canonicalize()
        .is_ok_and(|folder| dir.parent() == Some(folder.as_path()))
}

/// Puts a copy of `given` in the place of what an earlier run left, which is moved aside.
///
/// The copy is complete before anything moves, under a name of its own. Killed between the two renames, the next start
/// does the second one ([`recover_replacement`]); killed before, it removes the copy.
fn replace_by_copy(folder: &Path, given: &Checkpoint, observer: &mut dyn Observer) -> Result<()> {
    let next = replacement(folder);
    let partial = next.with_extension("partial");
    remove(&partial)?;
    CheckpointStore::open(&partial.join("checkpoints"), 1)?.adopt(given)?;
    sync(&partial)?;
    fs::rename(&partial, &next)?;
    move_aside(folder, observer)?;
    fs::rename(&next, folder)?;
    if let Some(parent) = folder.parent() {
        sync(parent)?;
    }
    Ok(())
}

/// Finishes or undoes what [`replace_by_copy`] was killed in.
fn recover_replacement(folder: &Path) -> Result<()> {
    let next = replacement(folder);
    if next.exists() && !folder.exists() {
        fs::rename(&next, folder)?;
    }
    remove(&next)?;
    remove(&next.with_extension("partial"))
}

fn replacement(folder: &Path) -> PathBuf {
    let name = folder
        .file_name()
        .map_or_else(|| "stage".into(), |name| name.to_string_lossy());
    folder.with_file_name(format!(".{name}.next"))
}

/// Removes episodes of steps that the run is going to do again, or never does: they are of another history.
fn remove_later_episodes(folder: &Path, step: u64) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let later = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix("step_")?.strip_suffix(".parquet"))
            .and_then(|number| number.parse::<u64>().ok());
        if later.is_some_and(|later| later > step) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Renames what an earlier run left to the first free name, so that starting over loses nothing.
fn move_aside(folder: &Path, observer: &mut dyn Observer) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let mut number = 1;
    let aside = loop {
        let aside = folder.with_extension(format!("old-{number}"));
        if !aside.exists() {
            break aside;
        }
        number += 1;
    };
    fs::rename(folder, &aside)?;
    observer.warning(&format!("moved the earlier run to `{}`", aside.display()));
    Ok(())
}
