//! What both stages share: the stage's folder, resuming, saving.

use std::path::{Path, PathBuf};

use asyncthink_data::write_bytes_atomic;
use asyncthink_recipe::{OptimizerSection, Recipe, Schedule, Stage};
use fs_err as fs;

use crate::card::ModelCard;
use crate::checkpoint::{Checkpoint, CheckpointStore, TrainerState};
use crate::error::{Error, Result};
use crate::fingerprint::recipe_keys;
use crate::layout::RunLayout;
use crate::metrics::MetricsLog;
use crate::models::ModelFiles;
use crate::observer::Observer;
use crate::optimizer::{AdamW, AdamWSettings};
use crate::schedule::{Decay, LearningRate};
use crate::tensors;

const OPTIMIZER_FILE: &str = "trainer/optimizer.safetensors";

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
    save: SavePolicy,
    num_steps: u64,
    saved: Option<(u64, PathBuf)>,
}

impl StageRun {
    /// Opens the stage's folder and finds what to resume from. The recipe and the data must be those of the checkpoint.
    pub(crate) fn open(
        recipe: &Recipe,
        stage: Stage,
        dataset: String,
        num_steps: u64,
        save: SavePolicy,
        options: &RunOptions,
        observer: &mut dyn Observer,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let layout = RunLayout::new(&recipe.run_dir);
        let folder = layout.stage(stage);
        let checkpoints = layout.checkpoints(stage);
        let mut state = TrainerState {
            stage: stage.name().to_owned(),
            step: 0,
            num_updates: 0,
            metrics_bytes: 0,
            seed: recipe.seed,
            dataset,
            recipe: recipe_keys(recipe, stage)?,
        };
        let given = match &options.resume {
            Resume::From(dir) => Some(open_given(dir, &state)?),
            Resume::Auto | Resume::Never => None,
        };
        let is_foreign = given
            .as_ref()
            .is_some_and(|checkpoint| !is_inside(&checkpoint.dir, &checkpoints));
        if is_foreign || options.resume == Resume::Never {
            move_aside(&folder, observer)?;
        }
        let store = CheckpointStore::open(&checkpoints, save.keep)?;
        let checkpoint = match given {
            Some(given) => Some(given),
            None => newest(&store, &state, observer)?,
        };
        if let Some(checkpoint) = &checkpoint {
            state.step = checkpoint.state.step;
            state.num_updates = checkpoint.state.num_updates;
            if !is_foreign {
                store.rewind_to(state.step)?;
                state.metrics_bytes = checkpoint.state.metrics_bytes;
            }
        }
        write_bytes_atomic(&folder.join("recipe.toml"), recipe.to_toml().as_bytes())?;
        let metrics = MetricsLog::open(&layout.metrics(stage), state.metrics_bytes)?;
        let saved = checkpoint
            .as_ref()
            .filter(|_| !is_foreign)
            .map(|checkpoint| (state.step, store.dir_of(checkpoint.state.step)));
        let run = Self {
            store,
            metrics,
            state,
            card: ModelCard::of(recipe),
            save,
            num_steps,
            saved,
        };
        Ok((run, checkpoint))
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
        self.state.num_updates = optimizer.num_updates();
        self.state.metrics_bytes = self.metrics.sync()?;
        let card = &self.card;
        let dir = self.store.save(&self.state, &mut |dir| {
            model.save(dir)?;
            card.write(dir)?;
            tensors::save(&dir.join(OPTIMIZER_FILE), &optimizer.state())
        })?;
        observer.saved(&dir, self.state.step);
        self.saved = Some((self.state.step, dir));
        Ok(())
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
    AdamW::new(model.decoder.named_parameters(), settings)
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
