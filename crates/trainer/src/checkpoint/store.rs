//! Writing, finding and removing checkpoints.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::manifest::{MANIFEST_FILE, Manifest, file_names};
use super::state::TrainerState;
use crate::error::{Error, Result};

const STATE_FILE: &str = "trainer/state.json";
const LATEST: &str = "latest";
/// Names with this prefix are unfinished or condemned; they are removed at the next start.
const HIDDEN: &str = ".partial-";

/// The `checkpoints` folder of one stage.
#[derive(Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    keep: usize,
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
#[derive(Debug)]
pub(crate) struct PartialCheckpoint {
    dir: PathBuf,
}

impl PartialCheckpoint {
    /// Where its files go.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
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
    /// Opens the folder, creating it, and removes what a killed process left unfinished. Keeps at least one checkpoint.
    ///
    /// # Errors
    /// When the folder cannot be created or cleaned.
    pub fn open(folder: &Path, keep: usize) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let store = Self {
            folder: folder.to_owned(),
            keep: keep.max(1),
        };
        for name in store.entries()? {
            if name.starts_with(HIDDEN) {
                remove(&folder.join(name))?;
            }
        }
        Ok(store)
    }

    /// The folder as a process sees it that does not own it: nothing is created or removed.
    pub(crate) fn attach(folder: &Path, keep: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            keep: keep.max(1),
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
        self.point_latest_at(step)?;
        for later in self.steps()?.into_iter().filter(|other| *other > step) {
            self.condemn(later)?;
        }
        Ok(())
    }

    /// Where the checkpoint of `step` is written until it is whole.
    pub(crate) fn partial_dir(&self, step: u64) -> PathBuf {
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
        self.commit(partial, state)
    }

    /// Makes an empty folder for the files of the checkpoint of `step`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn begin(&self, step: u64) -> Result<PartialCheckpoint> {
        let dir = self.partial_dir(step);
        remove(&dir)?;
        fs::create_dir_all(dir.join("trainer"))?;
        Ok(PartialCheckpoint { dir })
    }

    /// Makes what was begun the newest checkpoint. Returns its folder.
    ///
    /// # Errors
    /// When anything cannot be written; the checkpoints that exist are then untouched.
    pub(crate) fn commit(
        &self,
        partial: PartialCheckpoint,
        state: &TrainerState,
    ) -> Result<PathBuf> {
        let PartialCheckpoint { dir: partial } = partial;
        let final_dir = self.dir_of(state.step);
        let mut text = serde_json::to_string_pretty(state)
            .map_err(|error| Error::stage("writing a checkpoint's state", error))?;
        text.push('\n');
        fs::write(partial.join(STATE_FILE), text)?;
        Manifest::of(&partial)?.write(&partial)?;
        sync_tree(&partial)?;
        if final_dir.exists() {
            self.condemn(state.step)?;
        }
        fs::rename(&partial, &final_dir)?;
        sync(&self.folder)?;
        self.point_latest_at(state.step)?;
        self.prune(state.step)?;
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
        let older: Vec<u64> = self
            .steps()?
            .into_iter()
            .filter(|step| *step < newest)
            .collect();
        let num_condemned = older.len().saturating_sub(self.keep - 1);
        for step in &older[..num_condemned] {
            self.condemn(*step)?;
        }
        Ok(())
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
        let target = fs::read_link(self.folder.join(LATEST)).ok()?;
        target
            .file_name()?
            .to_str()?
            .strip_prefix("step_")?
            .parse()
            .ok()
    }

    fn point_latest_at(&self, step: u64) -> Result<()> {
        if self.latest_step() == Some(step) {
            return Ok(());
        }
        let fresh = self.folder.join(format!("{HIDDEN}latest"));
        remove(&fresh)?;
        fs::os::unix::fs::symlink(format!("step_{step}"), &fresh)?;
        fs::rename(&fresh, self.folder.join(LATEST))?;
        sync(&self.folder)
    }
}

pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

pub(crate) fn sync(path: &Path) -> Result<()> {
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
mod tests {
    use super::*;

    fn state(step: u64) -> TrainerState {
        TrainerState {
            stage: "sft".into(),
            step,
            num_updates: step,
            metrics_bytes: 0,
            seed: 1,
            dataset: "d".into(),
            initial_model: None,
            recipe: std::collections::BTreeMap::new(),
        }
    }

    fn write(dir: &Path) -> Result<()> {
        fs::write(dir.join("model.safetensors"), b"weights")?;
        fs::write(dir.join("trainer/optimizer.safetensors"), b"moments")?;
        Ok(())
    }

    fn store_with(dir: &Path, keep: usize, steps: &[u64]) -> CheckpointStore {
        let store = CheckpointStore::open(dir, keep).unwrap();
        for step in steps {
            store.save(&state(*step), &mut write).unwrap();
        }
        store
    }

    #[test]
    fn an_empty_folder_has_no_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let found = store_with(dir.path(), 2, &[]).newest().unwrap();
        assert!(found.checkpoint.is_none() && found.passed_over.is_empty());
    }

    #[test]
    fn latest_points_at_the_newest_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with(dir.path(), 2, &[1, 2, 10]);
        assert_eq!(store.steps().unwrap(), [2, 10]);
        assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 10);
        assert!(dir.path().join("latest/model.safetensors").is_file());
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_named() {
        for file in ["model.safetensors", "trainer/state.json", MANIFEST_FILE] {
            for damage in ["flip", "cut", "remove"] {
                let dir = tempfile::tempdir().unwrap();
                let store = store_with(dir.path(), 2, &[1, 2]);
                let path = store.dir_of(2).join(file);
                let mut bytes = fs::read(&path).unwrap();
                match damage {
                    "flip" => bytes[0] ^= 1,
                    _ => bytes.truncate(bytes.len() / 2),
                }
                fs::write(&path, bytes).unwrap();
                if damage == "remove" {
                    fs::remove_file(&path).unwrap();
                }
                let found = store.newest().unwrap();
                assert_eq!(found.checkpoint.unwrap().state.step, 1, "{file} {damage}");
                assert!(
                    found.passed_over[0].to_string().contains(file),
                    "{}",
                    found.passed_over[0]
                );
            }
        }
    }

    #[test]
    fn nothing_readable_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with(dir.path(), 2, &[1]);
        fs::remove_file(store.dir_of(1).join(STATE_FILE)).unwrap();
        assert!(matches!(
            store.newest(),
            Err(Error::NoReadableCheckpoint { .. })
        ));
    }

    #[test]
    fn a_failed_write_leaves_the_old_ones_and_is_swept_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with(dir.path(), 1, &[1]);
        let failed = store.save(&state(2), &mut |partial| {
            write(partial)?;
            Err(Error::Io(std::io::Error::other("disk full")))
        });
        assert!(failed.is_err());
        assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 1);
        let store = CheckpointStore::open(dir.path(), 1).unwrap();
        assert!(
            !store
                .entries()
                .unwrap()
                .iter()
                .any(|name| name.starts_with(HIDDEN))
        );
    }

    #[test]
    fn a_later_checkpoint_that_latest_does_not_name_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with(dir.path(), 3, &[1, 2, 3]);
        store.point_latest_at(2).unwrap();
        assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 2);
        store.rewind_to(1).unwrap();
        assert_eq!(store.steps().unwrap(), [1]);
        assert_eq!(store.newest().unwrap().checkpoint.unwrap().state.step, 1);
    }

    #[test]
    fn an_adopted_checkpoint_is_whole_and_starts_its_own_metrics() {
        let dir = tempfile::tempdir().unwrap();
        let there = store_with(&dir.path().join("there"), 2, &[]);
        let far = TrainerState {
            metrics_bytes: 77,
            ..state(5)
        };
        there.save(&far, &mut write).unwrap();
        let given = there.newest().unwrap().checkpoint.unwrap();
        let here = CheckpointStore::open(&dir.path().join("here"), 2).unwrap();
        let adopted = here.adopt(&given).unwrap();
        assert_eq!(adopted.dir, here.dir_of(5));
        let found = here.newest().unwrap().checkpoint.unwrap();
        assert_eq!((found.state.step, found.state.metrics_bytes), (5, 0));
        assert!(found.dir.join("trainer/optimizer.safetensors").is_file());
    }

    #[test]
    fn changed_recipe_and_data_are_refused_by_name() {
        let before = TrainerState {
            recipe: [("sft.num_steps".to_owned(), "5".to_owned())].into(),
            ..state(1)
        };
        let mut now = before.clone();
        assert!(before.check_same_run(&now, Path::new("c")).is_ok());
        now.dataset = "other".into();
        assert!(matches!(
            before.check_same_run(&now, Path::new("c")),
            Err(Error::DatasetChanged { .. })
        ));
        now.dataset = before.dataset.clone();
        now.initial_model = Some("b".into());
        assert!(before.check_same_run(&now, Path::new("c")).is_ok());
        let known = TrainerState {
            initial_model: Some("a".into()),
            ..before.clone()
        };
        assert!(matches!(
            known.check_same_run(&now, Path::new("c")),
            Err(Error::InitialModelChanged { .. })
        ));
        now.initial_model = None;
        assert!(known.check_same_run(&now, Path::new("c")).is_ok());
        now.recipe.insert("sft.num_steps".into(), "6".into());
        let error = before.check_same_run(&now, Path::new("c")).unwrap_err();
        assert!(error.to_string().contains("`sft.num_steps` is 6, was 5"));
        now.stage = "grpo".into();
        assert!(matches!(
            before.check_same_run(&now, Path::new("c")),
            Err(Error::WrongStage { .. })
        ));
    }
}
