//! Writing, finding and removing checkpoints.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::error::{Error, Result};
use crate::manifest::{MANIFEST_FILE, Manifest, file_names};
use crate::retention::Retention;
use crate::state::TrainerState;

const STATE_FILE: &str = "trainer/state.json";
const LATEST: &str = "latest";
const BEST: &str = "best";
/// Names with this prefix are unfinished or condemned; they are removed at the next start.
const HIDDEN: &str = ".partial-";

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
    /// When a file is missing or differs; the error names it.
    pub fn open(dir: &Path) -> Result<Self> {
        Manifest::verify(dir)?;
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
        self.folder.join(format!("step_{step}"))
    }

    /// The newest readable checkpoint: the one that `latest` names, else the ones before it in descending order.
    ///
    /// # Errors
    /// When the folder cannot be read, or when there are checkpoints and none is readable.
    pub fn newest(&self) -> Result<Found> {
        let mut found = Found::default();
        let latest = self.latest_step();
        for step in self
            .steps()?
            .into_iter()
            .rev()
            .filter(|step| latest.is_none_or(|latest| *step <= latest))
        {
            match Checkpoint::open(&self.dir_of(step)) {
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

    /// Makes the checkpoint of `step` the newest: `latest` points to it, and later ones are removed, because the run
    /// goes on from here and will write its own.
    ///
    /// # Errors
    /// When the folder cannot be changed.
    pub fn rewind_to(&self, step: u64) -> Result<()> {
        let (earlier, later): (Vec<u64>, Vec<u64>) =
            self.steps()?.into_iter().partition(|other| *other <= step);
        self.point(LATEST, step)?;
        self.point_at_best(&self.ranking(&earlier))?;
        later.into_iter().try_for_each(|step| self.condemn(step))
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
        if final_dir.exists() {
            self.condemn(step)?;
        }
        fs::rename(&partial.dir, &final_dir)?;
        sync(&self.folder)?;
        self.point(LATEST, step)?;
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
        Ok(Checkpoint { dir, state })
    }

    fn prune(&self, newest: u64) -> Result<()> {
        let mut steps = self.steps()?;
        steps.retain(|step| *step <= newest);
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
            let dir = self.dir_of(*step);
            if !Manifest::seems_whole(&dir, STATE_FILE) {
                return None;
            }
            let bytes = fs::read(dir.join(STATE_FILE)).ok()?;
            let state: TrainerState = serde_json::from_slice(&bytes).ok()?;
            Some((*step, *state.figures.get(self.retention.metric)?))
        };
        self.retention
            .ranking(steps.iter().filter_map(figure).collect())
    }

    /// Without a best one there is no link.
    fn point_at_best(&self, ranking: &[u64]) -> Result<()> {
        match ranking.first() {
            Some(best) => self.point(BEST, *best),
            None => remove(&self.folder.join(BEST)),
        }
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
            .filter_map(|name| name.strip_prefix("step_")?.parse().ok())
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
        self.step_of(LATEST)
    }

    /// The step that a link names.
    fn step_of(&self, link: &str) -> Option<u64> {
        let target = fs::read_link(self.folder.join(link)).ok()?;
        target
            .file_name()?
            .to_str()?
            .strip_prefix("step_")?
            .parse()
            .ok()
    }

    fn point(&self, link: &str, step: u64) -> Result<()> {
        if self.step_of(link) == Some(step) {
            return Ok(());
        }
        let fresh = self.folder.join(format!("{HIDDEN}{link}"));
        remove(&fresh)?;
        fs::os::unix::fs::symlink(format!("step_{step}"), &fresh)?;
        fs::rename(&fresh, self.folder.join(link))?;
        sync(&self.folder)
    }
}

/// Removes a file or folder, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Puts a file or a folder's entries on the disk.
///
/// # Errors
/// When the disk refuses.
pub fn sync(path: &Path) -> Result<()> {
    fs::File::open(path)?.sync_all()?;
    Ok(())
}

/// Puts every file and folder below `dir` on the disk, files first.
fn sync_tree(dir: &Path) -> Result<()> {
    let mut folders = std::collections::BTreeSet::from([dir.to_owned()]);
    for name in file_names(dir)? {
        let path = dir.join(name);
        sync(&path)?;
        folders.extend(
            path.ancestors()
                .skip(1)
                .take_while(|folder| folder.starts_with(dir))
                .map(Path::to_owned),
        );
    }
    for folder in folders.iter().rev() {
        sync(folder)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
