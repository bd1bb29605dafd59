//! What both stages share: progress of a run, resuming and saving, by all ranks together.

mod saving;

use std::path::PathBuf;
use std::sync::Arc;

use asyncthink_launch::World;
use asyncthink_recipe::{
    GrpoSection, OptimizerSection, Recipe, SaveInBackground, Schedule, SftSection, Stage,
};
use asyncthink_torch::Traffic;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, CheckpointStore, Retention, TrainerState};
use crate::error::{Error, Result};
use crate::fingerprint::recipe_keys;
use crate::layout::RunLayout;
use crate::metrics::StepClock;
use crate::observer::{Observer, StopFlag};
use crate::optimizer::{AdamW, AdamWSettings};
use crate::optimizer_files;
use crate::ranks::Ranks;
use crate::schedule::{Decay, LearningRate};
use crate::stage_folder::StageFolder;
use crate::trainee::Trainee;

pub(crate) use saving::ModelShare;

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
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Where the run begins.
    pub resume: Resume,
    /// The processes that run it together. All of them need the run's folder.
    pub ranks: Arc<Ranks>,
    /// Which attempt this is, of a launcher that tries again. Where one of them has begun as `resume` says, later ones go
    /// on from its checkpoints.
    pub attempt: Option<Attempt>,
}

/// One of the attempts of a launch, which starts its ranks again when one fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The same for all attempts of a launch.
    pub launch: String,
    /// How many came before.
    pub num_before: u32,
}

impl Attempt {
    /// The attempt of this process; `None` where no launcher started it.
    pub fn of(world: &World) -> Option<Self> {
        world.master()?;
        // The launcher of the first rank stays the same for as long as a launch lasts.
        let run_id = std::env::var("TORCHELASTIC_RUN_ID").unwrap_or_default();
        Some(Self {
            launch: format!("{run_id} {}", std::os::unix::process::parent_id()),
            num_before: world.restart_count(),
        })
    }
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

/// When a stage saves, and what it keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SavePolicy {
    pub(crate) every_steps: u64,
    pub(crate) retention: Retention,
    pub(crate) in_background: SaveInBackground,
}

impl SavePolicy {
    /// That of stage `sft`.
    pub(crate) fn of_sft(recipe: &Recipe, section: &SftSection) -> Self {
        Self {
            every_steps: section.save_every_steps as u64,
            retention: Retention {
                num_newest: section.keep_checkpoints,
                num_best: section.keep_best_checkpoints,
                metric: section.best_metric.name(),
                less_is_better: section.best_metric.less_is_better(),
            },
            in_background: recipe.save_in_background,
        }
    }

    /// That of stage `grpo`.
    pub(crate) fn of_grpo(recipe: &Recipe, section: &GrpoSection) -> Self {
        Self {
            every_steps: section.save_every_steps as u64,
            retention: Retention {
                num_newest: section.keep_checkpoints,
                num_best: section.keep_best_checkpoints,
                metric: section.best_metric.name(),
                less_is_better: section.best_metric.less_is_better(),
            },
            in_background: recipe.save_in_background,
        }
    }
}

/// A stage under way.
#[derive(Debug)]
pub(crate) struct StageRun {
    /// The first field, so that its end is waited for before the folder is let go of.
    pending: Option<saving::PendingSave>,
    ranks: Arc<Ranks>,
    /// What the first rank alone reads and writes.
    folder: Option<StageFolder>,
    /// Where checkpoints lie; the first rank writes it, the others add their part.
    store: CheckpointStore,
    state: TrainerState,
    save: SavePolicy,
    num_steps: u64,
    saved: Option<(u64, PathBuf)>,
    /// Spent on checkpoints and not yet booked.
    save_seconds: f64,
    /// What this rank had put in when the last step's line was written; none before the first.
    traffic_at_line: Option<Traffic>,
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
        recipe: &Recipe,
        stage: Stage,
        origin: Origin,
        num_steps: u64,
        save: SavePolicy,
        options: &RunOptions,
        observer: &mut dyn Observer,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let ranks = Arc::clone(&options.ranks);
        ranks.set_phase(&format!("{}: opening the run", stage.name()));
        let mut state = TrainerState {
            stage: stage.name().to_owned(),
            step: 0,
            num_updates: 0,
            metrics_bytes: 0,
            seed: recipe.seed,
            dataset: origin.dataset,
            initial_model: origin.initial_model,
            recipe: recipe_keys(recipe, stage)?,
            figures: std::collections::BTreeMap::new(),
        };
        ranks.check_same("recipe, data and initial model", &to_json(&state)?)?;
        let opened = ranks.is_first().then(|| {
            StageFolder::open(
                recipe,
                stage,
                &state,
                num_steps,
                save.retention,
                options,
                observer,
            )
        });
        let (folder, checkpoint) = ranks.agree(opened.transpose())?.unzip();
        let checkpoint = of_first_rank(checkpoint.flatten(), &ranks)?;
        if let Some(checkpoint) = &checkpoint {
            state.take_progress_of(&checkpoint.state);
        }
        let checkpoints = RunLayout::new(&recipe.run_dir).checkpoints(stage);
        let store = CheckpointStore::attach(&checkpoints, save.retention);
        let saved = checkpoint
            .as_ref()
            .map(|checkpoint| (state.step, store.dir_of(checkpoint.state.step)));
        let run = Self {
            pending: None,
            ranks,
            folder,
            store,
            state,
            save,
            num_steps,
            saved,
            save_seconds: 0.0,
            traffic_at_line: None,
        };
        Ok((run, checkpoint))
    }

    /// Fails on every rank unless all have the same weights and begin at the same step.
    pub(crate) fn check_same_start(&self, model: &Trainee) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        let text = format!("step {}{}", self.state.step, model.digest()?);
        self.ranks.check_same("the weights to begin with", &text)
    }

    /// Names what this rank does in the step under way.
    pub(crate) fn set_phase(&self, what: &str) {
        let step = self.state.step + 1;
        self.ranks
            .set_phase(&format!("{} step {step}: {what}", self.state.stage));
    }

    /// The signal that some rank was asked to stop by; the same answer on all.
    pub(crate) fn stop_requested(&self, stop: &StopFlag) -> Result<Option<i32>> {
        self.ranks.stop_requested(stop)
    }

    /// Appends a line to the metrics.
    pub(crate) fn append_metrics(&mut self, line: &impl Serialize) -> Result<()> {
        match &mut self.folder {
            Some(folder) => folder.metrics.append(line),
            None => Ok(()),
        }
    }

    /// A clock for the next step, which everything since the line of the last one is booked on: time and bytes of a save.
    pub(crate) fn clock(&mut self) -> StepClock {
        let traffic = self.traffic_at_line.take();
        let traffic_before = traffic.unwrap_or_else(|| self.ranks.group().traffic());
        StepClock::after_saving(std::mem::take(&mut self.save_seconds), traffic_before)
    }

    /// Steps done.
    pub(crate) fn step(&self) -> u64 {
        self.state.step
    }

    /// Whether the run is complete.
    pub(crate) fn is_finished(&self) -> bool {
        self.state.step >= self.num_steps
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
            num_steps: self.num_steps,
        }
    }

    /// Saves and gives the outcome of a run that was asked to stop, on all ranks together.
    pub(crate) fn stop(
        &mut self,
        stop: &StopFlag,
        model: &Trainee,
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
    Ok(told.map(|(dir, state)| Checkpoint { dir, state }))
}

/// The optimizer that a recipe's section describes, with the moments of the checkpoint that the run goes on from.
pub(crate) fn new_optimizer(
    model: &mut Trainee,
    section: &OptimizerSection,
    recipe: &Recipe,
    ranks: &Ranks,
    checkpoint: Option<&Checkpoint>,
) -> Result<AdamW> {
    let settings = AdamWSettings {
        beta1: section.beta1,
        beta2: section.beta2,
        eps: section.eps,
        weight_decay: section.weight_decay,
    };
    let bucket_bytes = recipe.distributed.bucket_bytes(ranks.world_size());
    let mut optimizer = model.new_optimizer(settings, bucket_bytes)?;
    if let Some(checkpoint) = checkpoint {
        let num_updates = checkpoint.state.num_updates;
        optimizer_files::restore(&mut optimizer, ranks, &checkpoint.dir, num_updates)?;
    }
    Ok(optimizer)
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
