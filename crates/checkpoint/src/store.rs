//! Writing, finding and removing checkpoints.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::aside::{self, SetAside};
use crate::disk::{is_there, remove, sync, sync_tree};
use crate::error::{Error, Result};
use crate::links::{self, BEST, HIDDEN, LATEST, name_of, step_of_name};
use crate::manifest::{MANIFEST_FILE, Manifest, file_names};
use crate::retention::Retention;
use crate::state::{STATE_FILE, TrainerState, new_run_id};

/// The `checkpoints` folder of one stage.
#[derive(Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    retention: Retention,
}

/// A checkpoint whose files have been compared with its manifest.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub dir: PathBuf,
    /// Where the run stood.
    pub state: TrainerState,
    /// Files that differ from the manifest and that resuming does not need, each with the difference.
    pub altered: Vec<String>,
}

/// What a search for a checkpoint found.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest readable checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that were passed over, each with its reason.
    pub passed_over: Vec<Error>,
}

/// A checkpoint that is being written, under a hidden name; one that is never finished is swept up later.
#[derive(Clone, Debug)]
pub struct PartialCheckpoint {
    dir: PathBuf,
}

impl PartialCheckpoint {
    /// Where its files go.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds the state and the manifest to what is written, and puts everything on the disk.
    ///
    /// # Errors
    /// When anything cannot be written.
    pub fn seal(&self, state: &TrainerState) -> Result<()> {
        let mut text = serde_json::to_string_pretty(state)
            .map_err(|error| Error::stage("writing a checkpoint's state", error))?;
        text.push('\n');
        fs::write(self.dir.join(STATE_FILE), text)?;
        Manifest::of(&self.dir)?.write(&self.dir)?;
        sync_tree(&self.dir)
    }
}

impl Checkpoint {
    /// Reads a checkpoint's state after comparing every file with the manifest.
    ///
    /// # Errors
    /// When a file that resuming needs is missing or differs; the error names it.
    pub fn open(dir: &Path) -> Result<Self> {
        let altered = Manifest::verify(dir)?;
        let damaged = |reason: String| Error::DamagedCheckpoint {
            dir: dir.to_owned(),
            file: STATE_FILE.to_owned(),
            reason,
        };
        let bytes = fs::read(dir.join(STATE_FILE)).map_err(|error| damaged(error.to_string()))?;
        let state = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        Ok(Self {
            dir: dir.to_owned(),
            state,
            altered,
        })
    }
}

impl CheckpointStore {
    /// Opens the folder, creating it, and removes what a killed process left unfinished.
    ///
    /// # Errors
    /// When the folder cannot be created or cleaned.
    pub fn open(folder: &Path, retention: Retention) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let store = Self::attach(folder, retention);
        links::recover(folder, LATEST)?;
        for name in store.entries()? {
            if name.starts_with(HIDDEN) {
                remove(&folder.join(name))?;
            }
        }
        Ok(store)
    }

    /// The folder as a process sees it that does not own it: nothing is created or removed.
    pub fn attach(folder: &Path, retention: Retention) -> Self {
        Self {
            folder: folder.to_owned(),
            retention,
        }
    }

    /// Folder of the checkpoint of step `step`.
    pub fn dir_of(&self, step: u64) -> PathBuf {
        self.folder.join(name_of(step))
    }

    /// Makes room for the links `latest` and `best` where folders lie in their place, as a copy has that followed links: such a
    /// folder gets the name of its step, or goes where that checkpoint is there. Returns what was set aside.
    ///
    /// # Errors
    /// When the folder cannot be changed.
    pub fn replace_copied_links(&self) -> Result<Vec<SetAside>> {
        aside::replace_copied_links(&self.folder)
    }

    /// The newest readable checkpoint: the one that `latest` names, else the ones before it in descending order. Without the
    /// link, as in a copy that has lost it, the newest of all.
    ///
    /// # Errors
    /// When the folder cannot be read, or when there are checkpoints and none is readable.
    pub fn newest(&self) -> Result<Found> {
        let mut found = Found::default();
        for step in self.candidates()? {
            match self.open_step(step) {
                Ok(checkpoint) => {
                    found.checkpoint = Some(checkpoint);
                    return Ok(found);
                }
                Err(error) => found.passed_over.push(error),
            }
        }
        if found.passed_over.is_empty() {
            return Ok(found);
        }
        let newest = Box::new(found.passed_over.swap_remove(0));
        Err(Error::NoReadableCheckpoint {
            dir: self.folder.clone(),
            newest,
        })
    }

    /// Steps to look for the newest checkpoint at, in descending order; the one that `latest` names is among them even if it is
    /// gone.
    fn candidates(&self) -> Result<Vec<u64>> {
        let mut steps = self.steps()?;
        if let Some(latest) = self.latest_step() {
            steps.retain(|step| *step < latest);
            steps.push(latest);
        }
        steps.reverse();
        Ok(steps)
    }

    fn open_step(&self, step: u64) -> Result<Checkpoint> {
        let dir = self.dir_of(step);
        if !is_there(&dir) {
            return Err(Error::CheckpointGone { dir });
        }
        let checkpoint = Checkpoint::open(&dir)?;
        if checkpoint.state.step != step {
            return Err(Error::DamagedCheckpoint {
                dir,
                file: STATE_FILE.to_owned(),
                reason: format!(
                    "it is of step {}, which is not the folder's",
                    checkpoint.state.step
                ),
            });
        }
        Ok(checkpoint)
    }

    /// Makes the checkpoint of `step` the newest: `latest` points to it, and later ones are set aside, because the run goes on
    /// from here and will write its own. Returns what was set aside.
    ///
    /// # Errors
    /// When the folder cannot be changed.
    pub fn rewind_to(&self, step: u64) -> Result<Vec<SetAside>> {
        let (earlier, later): (Vec<u64>, Vec<u64>) =
            self.steps()?.into_iter().partition(|other| *other <= step);
        links::point(&self.folder, LATEST, step)?;
        self.point_at_best(&self.ranking(&self.of_run_of(step, earlier)))?;
        later
            .into_iter()
            .map(|step| aside::set_aside(&self.folder, &name_of(step)))
            .collect()
    }

    /// Where the checkpoint of `step` is written until it is whole.
    pub fn partial_dir(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{HIDDEN}step_{step}"))
    }

    /// Writes the checkpoint of `state.step`, whose files `write_files` puts into a folder. Returns its own folder.
    ///
    /// # Errors
    /// When anything cannot be written; the checkpoints that exist are then untouched.
    pub fn save(
        &self,
        state: &TrainerState,
        write_files: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let partial = self.begin(state.step)?;
        write_files(partial.dir())?;
        partial.seal(state)?;
        self.publish(&partial, state.step)
    }

    /// Makes an empty folder for the files of the checkpoint of `step`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(&self, step: u64) -> Result<PartialCheckpoint> {
        let dir = self.partial_dir(step);
        remove(&dir)?;
        fs::create_dir_all(dir.join("trainer"))?;
        Ok(PartialCheckpoint { dir })
    }

    /// Makes what was sealed the newest checkpoint, and removes those that need not stay. Returns its folder.
    ///
    /// # Errors
    /// When anything cannot be changed; until it has its name, the checkpoints that exist are untouched.
    pub fn publish(&self, partial: &PartialCheckpoint, step: u64) -> Result<PathBuf> {
        let final_dir = self.dir_of(step);
        if is_there(&final_dir) {
            // Somebody has put it there meanwhile.
            aside::set_aside(&self.folder, &name_of(step))?;
        }
        if links::is_folder(&self.folder, LATEST) {
            aside::set_aside(&self.folder, LATEST)?;
        }
        // Killed between the two renames, the next start does the second one.
        links::prepare(&self.folder, LATEST, step)?;
        fs::rename(&partial.dir, &final_dir)?;
        sync(&self.folder)?;
        links::commit(&self.folder, LATEST)?;
        self.prune(step)?;
        Ok(final_dir)
    }

    /// Copies a checkpoint of another folder into this one and makes it the newest. What its metrics file held stays
    /// behind: the copy's begins anew.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn adopt(&self, given: &Checkpoint) -> Result<Checkpoint> {
        let state = TrainerState {
            metrics_bytes: 0,
            run: new_run_id(),
            ..given.state.clone()
        };
        let dir = self.save(&state, &mut |partial| {
            for name in file_names(&given.dir)? {
                if name != STATE_FILE && name != MANIFEST_FILE {
                    let target = partial.join(&name);
                    if let Some(folder) = target.parent() {
                        fs::create_dir_all(folder)?;
                    }
                    fs::copy(given.dir.join(&name), target)?;
                }
            }
            Ok(())
        })?;
        Ok(Checkpoint {
            dir,
            state,
            altered: Vec::new(),
        })
    }

    /// Removes checkpoints of the run that need not stay, and no others.
    fn prune(&self, newest: u64) -> Result<()> {
        let mut steps = self.steps()?;
        steps.retain(|step| *step <= newest);
        let steps = self.of_run_of(newest, steps);
        let ranking = self.ranking(&steps);
        self.point_at_best(&ranking)?;
        for step in self.retention.superfluous(&steps, &ranking) {
            self.condemn(step)?;
        }
        Ok(())
    }

    /// Those of `steps` that can be compared, the best one first; none where none is kept for being good.
    ///
    /// Damaged checkpoints are left out. That their large files are damaged shows by their sizes only.
    fn ranking(&self, steps: &[u64]) -> Vec<u64> {
        if self.retention.num_best == 0 {
            return Vec::new();
        }
        let figure = |step: &u64| {
            if !Manifest::seems_whole(&self.dir_of(*step), STATE_FILE) {
                return None;
            }
            let state = self.state_of(*step)?;
            Some((*step, *state.figures.get(self.retention.metric)?))
        };
        self.retention
            .ranking(steps.iter().filter_map(figure).collect())
    }

    /// Without a best one there is no link.
    fn point_at_best(&self, ranking: &[u64]) -> Result<()> {
        match ranking.first() {
            _ if links::is_folder(&self.folder, BEST) => Ok(()),
            Some(best) => links::point(&self.folder, BEST, *best),
            None => remove(&self.folder.join(BEST)),
        }
    }

    /// Steps among `steps` written by the same run as the checkpoint of `step`; copied-in checkpoints of other runs are left out.
    fn of_run_of(&self, step: u64, mut steps: Vec<u64>) -> Vec<u64> {
        let run_of = |step| self.state_of(step).map(|state| state.run);
        let run = run_of(step);
        steps.retain(|other| *other == step || (run.is_some() && run_of(*other) == run));
        steps
    }

    /// State of the checkpoint of `step`, as its file has it; `None` where that cannot be read or is of another step.
    fn state_of(&self, step: u64) -> Option<TrainerState> {
        TrainerState::read(&self.dir_of(step)).filter(|state| state.step == step)
    }

    /// Hides a checkpoint by a rename, then removes it: it never exists in part under its own name.
    fn condemn(&self, step: u64) -> Result<()> {
        let hidden = self.folder.join(format!("{HIDDEN}old-step_{step}"));
        remove(&hidden)?;
        fs::rename(self.dir_of(step), &hidden)?;
        sync(&self.folder)?;
        remove(&hidden)
    }

    /// Steps of the checkpoints that exist, ascending.
    fn steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> = self
            .entries()?
            .iter()
            .filter_map(|name| step_of_name(name))
            .collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn entries(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn latest_step(&self) -> Option<u64> {
        links::named_step(&self.folder, LATEST)
    }
}

/// Model folder of the newest checkpoint in a folder of checkpoints, for those who only read: `latest`, or where that is missing
/// or points nowhere, the newest checkpoint whose files have their sizes. Without any it is `latest`, which is not there.
pub fn newest_model(checkpoints: &Path) -> PathBuf {
    let latest = checkpoints.join(LATEST);
    if latest.is_dir() {
        return latest;
    }
    let store = CheckpointStore::attach(checkpoints, Retention::newest(1));
    let steps = store.candidates().unwrap_or_default().into_iter();
    steps
        .filter(|step| store.state_of(*step).is_some())
        .map(|step| store.dir_of(step))
        .find(|dir| Manifest::seems_whole(dir, STATE_FILE))
        .unwrap_or(latest)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "touched_tests.rs"]
mod touched_tests;
