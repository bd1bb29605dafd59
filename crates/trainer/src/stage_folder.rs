//! The folder of a stage, which one process owns: opening it, and writing checkpoints.

use std::path::{Path, PathBuf};

use asyncthink_data::{Tokenizer, write_bytes_atomic};
use asyncthink_model::Decoder;
use asyncthink_recipe::{Recipe, Stage};
use fs_err as fs;

use crate::card::ModelCard;
use crate::checkpoint::{
    Checkpoint, CheckpointStore, PartialCheckpoint, TrainerState, remove, sync,
};
use crate::error::Result;
use crate::layout::RunLayout;
use crate::lock::StageLock;
use crate::metrics::MetricsLog;
use crate::observer::Observer;
use crate::optimizer::AdamW;
use crate::optimizer_files;
use crate::ranks::Ranks;
use crate::readme::{Contents, Readme};
use crate::run::Resume;

/// Where the last checkpoint of a run with adapters holds the whole model, if the recipe asks for it.
const MERGED_FOLDER: &str = "merged";

/// What a checkpoint holds of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SavedModel<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) tokenizer: &'a Tokenizer,
}

/// The open folder of a stage.
#[derive(Debug)]
pub(crate) struct StageFolder {
    store: CheckpointStore,
    pub(crate) metrics: MetricsLog,
    card: ModelCard,
    readme: Readme,
    save_merged: bool,
    _lock: StageLock,
}

impl StageFolder {
    /// Locks and opens the folder for a run that is to begin as `begin` says, and finds what to resume from. Nothing is
    /// changed before it is known that recipe and data are those of the checkpoint.
    pub(crate) fn open(
        recipe: &Recipe,
        stage: Stage,
        begin: &TrainerState,
        num_steps: u64,
        keep: usize,
        resume: &Resume,
        observer: &mut dyn Observer,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let layout = RunLayout::new(&recipe.run_dir);
        let lock = StageLock::acquire(&layout, stage)?;
        let folder = layout.stage(stage);
        let checkpoints = layout.checkpoints(stage);
        recover_replacement(&folder)?;
        let mut given = match resume {
            Resume::From(dir) => Some(open_given(dir, begin)?),
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
        let store = CheckpointStore::open(&checkpoints, keep)?;
        let checkpoint = match given {
            Some(given) => Some(given),
            None => newest(&store, begin, observer)?,
        };
        let mut state = begin.clone();
        if let Some(checkpoint) = &checkpoint {
            state.take_progress_of(&checkpoint.state);
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
        let opened = Self {
            store,
            metrics,
            card: ModelCard::of(recipe),
            readme: Readme::of(recipe, stage, num_steps),
            save_merged: recipe.lora.as_ref().is_some_and(|lora| lora.save_merged),
            _lock: lock,
        };
        Ok((opened, checkpoint))
    }

    /// Writes the checkpoint of `state.step` with the other ranks, each of which adds its moments
    /// ([`StageRun::save`](crate::run::StageRun::save)). They meet three times, and at each learn whether all went well:
    /// when the model is written, when all moments are, and when the checkpoint has its name.
    pub(crate) fn save(
        &mut self,
        state: &mut TrainerState,
        model: SavedModel<'_>,
        optimizer: &AdamW,
        ranks: &Ranks,
        is_finished: bool,
    ) -> Result<PathBuf> {
        let partial = ranks.agree(self.begin(state, model, is_finished))?;
        ranks.agree(optimizer_files::write_share(
            optimizer,
            ranks,
            partial.dir(),
        ))?;
        ranks.agree(self.store.commit(partial, state))
    }

    /// Writes all but the moments.
    fn begin(
        &mut self,
        state: &mut TrainerState,
        model: SavedModel<'_>,
        is_finished: bool,
    ) -> Result<PartialCheckpoint> {
        state.metrics_bytes = self.metrics.sync()?;
        let state = &*state;
        let latest = self.metrics.last_line()?;
        let describe =
            |dir: &Path, contents| self.readme.write(dir, state, latest.as_ref(), contents);
        let contents = match model.decoder.adapters() {
            Some(_) => Contents::Adapters,
            None => Contents::Model,
        };
        let partial = self.store.begin(state.step)?;
        let dir = partial.dir();
        model.decoder.save(dir)?;
        model.tokenizer.save(dir)?;
        self.card.write(dir)?;
        describe(dir, contents)?;
        if self.save_merged && is_finished {
            let merged = dir.join(MERGED_FOLDER);
            fs::create_dir_all(&merged)?;
            model.decoder.merged()?.save(&merged)?;
            model.tokenizer.save(&merged)?;
            self.card.write(&merged)?;
            describe(&merged, Contents::Model)?;
        }
        Ok(partial)
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
