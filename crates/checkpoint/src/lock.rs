//! One process per stage of a run.

use std::fs::TryLockError;
use std::io::{Seek as _, Write as _};
use std::path::PathBuf;

use asyncthink_data::remove_stale_temporaries;
use asyncthink_recipe::Stage;
use fs_err as fs;

use crate::error::{Error, Result};
use crate::layout::RunLayout;

/// Keeps other processes out of a stage's folder; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct StageLock {
    file: fs::File,
}

impl StageLock {
    /// Locks a stage, and removes the temporary files that killed processes left in its folder.
    ///
    /// The file lies beside the stage's folder, which may be moved aside while it is locked. A file system that knows no
    /// locks protects nobody and stops nobody.
    ///
    /// # Errors
    /// [`Error::RunInUse`] when another process holds it, or when the file cannot be made.
    pub fn acquire(layout: &RunLayout, stage: Stage) -> Result<Self> {
        fs::create_dir_all(layout.root())?;
        let path = lock_file(layout, stage);
        let file = fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::RunInUse {
                    stage: stage.name().to_owned(),
                    run_dir: layout.root().to_owned(),
                });
            }
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let folder = layout.stage(stage);
        for folder in [layout.root(), &folder, &folder.join("episodes")] {
            remove_stale_temporaries(folder)?;
        }
        Ok(Self { file })
    }

    /// Whether a process works on a stage, for those who only read what it writes.
    pub fn is_held(layout: &RunLayout, stage: Stage) -> bool {
        // Shared, so that those who ask are not in one another's way.
        fs::File::open(lock_file(layout, stage)).is_ok_and(|file| {
            matches!(file.file().try_lock_shared(), Err(TryLockError::WouldBlock))
        })
    }

    /// Leaves a text in the file, for the other ranks of the owner to find: they see it if they share the folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn leave(&self, text: &str) -> Result<()> {
        let mut file = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        Ok(self.file.sync_all()?)
    }

    /// Text that the owner left in the lock file, as this process sees it; `None` where nothing can be read.
    pub fn left(layout: &RunLayout, stage: Stage) -> Option<String> {
        // Listing the folder makes a network file system ask its server.
        let _ = fs::read_dir(layout.root()).map(Iterator::count);
        fs::read_to_string(lock_file(layout, stage)).ok()
    }
}

fn lock_file(layout: &RunLayout, stage: Stage) -> PathBuf {
    layout.root().join(format!(".{}.lock", stage.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let layout = RunLayout::new(dir.path());
        assert!(!StageLock::is_held(&layout, Stage::Sft));
        let lock = StageLock::acquire(&layout, Stage::Sft).unwrap();
        assert!(StageLock::is_held(&layout, Stage::Sft));
        let error = StageLock::acquire(&layout, Stage::Sft).unwrap_err();
        assert!(matches!(error, Error::RunInUse { .. }), "{error}");
        assert!(error.is_input() && error.hint().is_some());
        StageLock::acquire(&layout, Stage::Grpo).unwrap();
        assert_eq!(StageLock::left(&layout, Stage::Sft).as_deref(), Some(""));
        lock.leave("longer than what follows").unwrap();
        lock.leave("token").unwrap();
        assert_eq!(
            StageLock::left(&layout, Stage::Sft).as_deref(),
            Some("token")
        );
        assert_eq!(
            StageLock::left(&RunLayout::new(&dir.path().join("other")), Stage::Sft),
            None
        );
        drop(lock);
        assert!(!StageLock::is_held(&layout, Stage::Sft));
        StageLock::acquire(&layout, Stage::Sft).unwrap();
    }
}
