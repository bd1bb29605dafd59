//! The folder of a stage, which one process owns: opening it, and writing checkpoints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use asyncthink_checkpoint::{
    Checkpoint, CheckpointStore, PartialCheckpoint, Readme, Retention, SetAside, StageLock,
    TrainerState, remove, sync,
};
use asyncthink_data::write_bytes_atomic;
use asyncthink_model::PretrainedModel;
use asyncthink_recipe::FinalDtype;
use asyncthink_rollout::ModelCard;
use fs_err as fs;
use serde::Serialize;

use super::launch_file::LaunchFile;
use super::options::{Resume, RunOptions};
use super::snapshot::ModelSnapshot;
use crate::episode_files;
use crate::error::{Error, Result};
use crate::observer::Observer;
use crate::settings::RunSettings;
use asyncthink_metrics::{MetricsLog, MetricsSink, SinkContext};

/// The open folder of a stage.
#[derive(Debug)]
pub(super) struct StageFolder {
    store: CheckpointStore,
    metrics: MetricsLog,
    sinks: Vec<Box<dyn MetricsSink>>,
    card: ModelCard,
    readme: Readme,
    save_merged: bool,
    final_dtype: Option<FinalDtype>,
    _lock: StageLock,
}

impl StageFolder {
    /// Locks and opens the folder for a run that is to begin as `begin` says, and finds what to resume from. Nothing is
    /// changed before it is known that recipe and data are those of the checkpoint.
    pub(super) fn open(
        settings: &RunSettings,
        begin: &TrainerState,
        options: &RunOptions,
        launchers: &Launchers,
        observer: &mut dyn Observer,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let RunSettings { stage, layout, .. } = settings;
        let (stage, allowed) = (*stage, &settings.allow_changed);
        let retention = settings.save.retention;
        let lock = StageLock::acquire(layout, stage)?;
        let folder = layout.stage(stage);
        let checkpoints = layout.checkpoints(stage);
        recover_replacement(&folder)?;
        let launch_file = LaunchFile::of(&folder);
        let is_begun = launchers.may_be_later && launch_file.names_any(&launchers.names);
        let mut given = match &options.resume {
            _ if is_begun => None,
            Resume::From(dir) => Some(open_given(dir, begin, allowed, observer)?),
            Resume::Never => {
                move_aside(&folder, observer)?;
                None
            }
            Resume::Auto => None,
        };
        if let Some(foreign) = given.take_if(|given| !is_one_of(given, &checkpoints)) {
            replace_by_copy(&folder, &foreign, observer)?;
        }
        let store = CheckpointStore::open(&checkpoints, retention)?;
        for aside in store.replace_copied_links()? {
            observer.warning(&format!("{aside}: a link belongs there"));
        }
        let checkpoint = match given {
            Some(given) => Some(given),
            None => newest(&store, begin, allowed, observer)?,
        };
        let mut state = begin.clone();
        let mut aside = Vec::new();
        if let Some(checkpoint) = &checkpoint {
            warn_of_altered(checkpoint, observer);
            state.take_progress_of(&checkpoint.state);
            aside = store.rewind_to(state.step)?;
            keep_metrics(&aside, &layout.metrics(stage))?;
            for aside in &aside {
                observer.warning(&format!(
                    "{aside}: the run goes on from step {}, and nothing looks at it any more",
                    state.step
                ));
            }
        }
        let history = newest_folder(&aside);
        episode_files::remove_stale(&layout.episodes_folder(stage), state.step, history)?;
        let recipe = &settings.resolved_recipe;
        write_bytes_atomic(&folder.join("recipe.toml"), recipe.as_bytes())?;
        layout.write_recipe(recipe)?;
        if options.resume != Resume::Auto && !launchers.names.is_empty() {
            launch_file.write(&launchers.names, is_begun)?;
        }
        let metrics = MetricsLog::open(&layout.metrics(stage), state.metrics_bytes)?;
        if metrics.missing_bytes() > 0 {
            observer.warning(&format!(
                "`{}` lacks its last {} bytes: steps before step {} are missing in it",
                metrics.path().display(),
                metrics.missing_bytes(),
                state.step + 1
            ));
        }
        let context = SinkContext {
            stage_folder: &folder,
            resumed_step: state.step,
        };
        let sinks = settings.sinks.iter().map(|open| open(&context));
        let opened = Self {
            store,
            metrics,
            sinks: sinks.collect::<asyncthink_metrics::Result<_>>()?,
            card: settings.card.clone(),
            readme: settings.readme.clone(),
            save_merged: settings.save.merged,
            final_dtype: settings.save.final_dtype,
            _lock: lock,
        };
        Ok((opened, checkpoint))
    }

    /// Writes the metrics of a step to `metrics.jsonl` and to every sink.
    pub(super) fn write_metrics(&mut self, line: &impl Serialize) -> Result<()> {
        self.metrics.append(line)?;
        if self.sinks.is_empty() {
            return Ok(());
        }
        let line = serde_json::to_value(line)
            .map_err(|error| Error::stage("writing the metrics", error))?;
        let mut sinks = self.sinks.iter_mut();
        Ok(sinks.try_for_each(|sink| sink.write(&line))?)
    }

    /// Makes the folder of the checkpoint of `state.step`, and gathers what goes into it besides the moments.
    pub(super) fn begin_checkpoint(
        &mut self,
        state: &mut TrainerState,
        model: PretrainedModel,
        is_finished: bool,
    ) -> Result<ModelSnapshot> {
        state.metrics_bytes = self.metrics.sync()?;
        self.sinks.iter_mut().try_for_each(|sink| sink.sync())?;
        Ok(ModelSnapshot {
            partial: self.store.begin(state.step)?,
            model,
            card: self.card.clone(),
            readme: self.readme.clone(),
            state: state.clone(),
            latest: self.metrics.last_line()?,
            saves_merged: self.save_merged && is_finished,
            final_dtype: self.final_dtype.filter(|_| is_finished),
        })
    }

    /// Makes the checkpoint of `step` out of what all ranks have written.
    pub(super) fn publish(&self, partial: &PartialCheckpoint, step: u64) -> Result<PathBuf> {
        Ok(self.store.publish(partial, step)?)
    }
}

/// The launchers of all ranks.
#[derive(Debug, Default)]
pub(super) struct Launchers {
    pub(super) names: BTreeSet<String>,
    /// Whether this may be a later attempt for one of them.
    pub(super) may_be_later: bool,
}

impl Launchers {
    /// Asks all ranks.
    pub(super) fn of(options: &RunOptions) -> Result<Self> {
        let failed = |error| Error::stage("comparing the launchers of the ranks", error);
        let own = options.attempt.as_ref();
        let own = own.map(|attempt| (&attempt.launcher, attempt.may_be_later));
        let own = serde_json::to_vec(&own).map_err(failed)?;
        let mut launchers = Self::default();
        for bytes in options.ranks.gather_bytes(&own)? {
            let of_rank: Option<(String, bool)> = serde_json::from_slice(&bytes).map_err(failed)?;
            if let Some((name, may_be_later)) = of_rank {
                launchers.names.insert(name);
                launchers.may_be_later |= may_be_later;
            }
        }
        Ok(launchers)
    }
}

/// Fails where the run would not be that of the checkpoint, and says which differences are accepted.
fn check_same_run(
    checkpoint: &Checkpoint,
    now: &TrainerState,
    allowed: &[String],
    observer: &mut dyn Observer,
) -> Result<()> {
    let dir = &checkpoint.dir;
    for difference in checkpoint.state.check_same_run(now, dir, allowed)? {
        observer.warning(&format!(
            "going on from `{}` with a change that `allow_changed` names: {difference}",
            dir.display()
        ));
    }
    Ok(())
}

fn open_given(
    dir: &Path,
    now: &TrainerState,
    allowed: &[String],
    observer: &mut dyn Observer,
) -> Result<Checkpoint> {
    if !dir.is_dir() {
        return Err(Error::Setting {
            key: "--resume",
            reason: format!("`{}`: no such folder", dir.display()),
        });
    }
    let checkpoint = Checkpoint::open(&fs::canonicalize(dir)?)?;
    check_same_run(&checkpoint, now, allowed, observer)?;
    Ok(checkpoint)
}

fn newest(
    store: &CheckpointStore,
    now: &TrainerState,
    allowed: &[String],
    observer: &mut dyn Observer,
) -> Result<Option<Checkpoint>> {
    let found = store.newest()?;
    if let Some(checkpoint) = &found.checkpoint {
        check_same_run(checkpoint, now, allowed, observer)?;
    }
    for error in &found.passed_over {
        observer.warning(&format!("{error}; going back to the checkpoint before it"));
    }
    Ok(found.checkpoint)
}

/// Files that people edit say nothing about the run.
fn warn_of_altered(checkpoint: &Checkpoint, observer: &mut dyn Observer) {
    if !checkpoint.altered.is_empty() {
        observer.warning(&format!(
            "files of `{}` have changed since it was written, and the run goes on with them as they are: {}",
            checkpoint.dir.display(),
            checkpoint.altered.join(", ")
        ));
    }
}

/// Puts the metrics that led to the newest checkpoint set aside into its folder: the run cuts the file and writes its own.
fn keep_metrics(aside: &[SetAside], metrics: &Path) -> Result<()> {
    if let (Some(newest), Some(name)) = (newest_folder(aside), metrics.file_name())
        && metrics.is_file()
    {
        fs::copy(metrics, newest.join(name))?;
    }
    Ok(())
}

fn newest_folder(aside: &[SetAside]) -> Option<&Path> {
    let newest = aside.last().map(|one| one.to.as_path());
    newest.filter(|path| path.is_dir())
}

/// Whether a checkpoint is one of the folder's, and not a copy in it that has another name.
fn is_one_of(given: &Checkpoint, folder: &Path) -> bool {
    let name = format!("step_{}", given.state.step);
    folder
        .canonicalize()
        .is_ok_and(|folder| given.dir == folder.join(name))
}

/// Puts a copy of `given` in the place of what an earlier run left, which is moved aside.
///
/// The copy is complete before anything moves, under a name of its own. Killed between the two renames, the next start
/// does the second one ([`recover_replacement`]); killed before, it removes the copy.
fn replace_by_copy(folder: &Path, given: &Checkpoint, observer: &mut dyn Observer) -> Result<()> {
    let next = replacement(folder);
    let partial = next.with_extension("partial");
    remove(&partial)?;
    let retention = Retention::newest(1);
    CheckpointStore::open(&partial.join("checkpoints"), retention)?.adopt(given)?;
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
    Ok(remove(&next.with_extension("partial"))?)
}

fn replacement(folder: &Path) -> PathBuf {
    let name = folder
        .file_name()
        .map_or_else(|| "stage".into(), |name| name.to_string_lossy());
    folder.with_file_name(format!(".{name}.next"))
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
