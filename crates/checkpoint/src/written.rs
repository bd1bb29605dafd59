//! The parts of a checkpoint that ranks write: one file per rank, all of which it needs.
//!
//! Each rank says what it wrote; the first one sees all of it before it writes the manifest. A file system shared by several
//! machines may show a file late, or in part at first; one that is not shared never does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::manifest::{FileSummary, summarise};

/// Time between two looks at files that others have written.
const PAUSE: Duration = Duration::from_millis(50);

/// A file as the rank knows it that wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    name: PathBuf,
    summary: FileSummary,
}

impl Part {
    /// Describes the file `name` below a checkpoint's folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(dir: &Path, name: PathBuf) -> Result<Self> {
        let summary = summarise(&dir.join(&name))?;
        Ok(Self { name, summary })
    }
}

/// Waits until this process sees in `dir` what others have written, for `limit` at most.
///
/// # Errors
/// Files that are missing or not whole by then, each with its rank.
pub fn wait_for_parts(dir: &Path, parts: &[Part], limit: Duration) -> Result<()> {
    let began = Instant::now();
    loop {
        // Listing the folders makes a network file system ask its server.
        for folder in parts.iter().filter_map(|part| part.name.parent()) {
            let _ = fs_err::read_dir(dir.join(folder)).map(Iterator::count);
        }
        let missing: Vec<String> = parts
            .iter()
            .enumerate()
            .filter_map(|(rank, part)| {
                let reason = difference(dir, part)?;
                Some(format!("`{}` of rank {rank} {reason}", part.name.display()))
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= limit {
            return Err(Error::MissingParts {
                dir: dir.to_owned(),
                missing,
                waited: limit,
            });
        }
        std::thread::sleep(PAUSE);
    }
}

fn difference(dir: &Path, part: &Part) -> Option<String> {
    match summarise(&dir.join(&part.name)) {
        Ok(found) if found == part.summary => None,
        Ok(_) => Some("is not what that rank wrote".to_owned()),
        Err(error) if error.is_not_found() => Some("is not there".to_owned()),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = [
        "trainer/optimizer/rank_0_of_2.safetensors",
        "trainer/optimizer/rank_1_of_2.safetensors",
    ];

    /// The folder of a checkpoint with both parts.
    fn written(dir: &Path) -> Vec<Part> {
        fs_err::create_dir_all(dir.join("trainer/optimizer")).unwrap();
        let part = |name: &str| {
            fs_err::write(dir.join(name), name).unwrap();
            Part::of(dir, PathBuf::from(name)).unwrap()
        };
        NAMES.map(part).into()
    }

    #[test]
    fn a_part_that_comes_late_or_piece_by_piece_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let parts = written(dir.path());
        let late = dir.path().join(NAMES[1]);
        let bytes = fs_err::read(&late).unwrap();
        fs_err::write(&late, &bytes[..4]).unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(4 * PAUSE);
            fs_err::write(late, bytes).unwrap();
        });
        wait_for_parts(dir.path(), &parts, Duration::from_mins(1)).unwrap();
        writer.join().unwrap();
    }

    #[test]
    fn a_part_that_never_comes_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let parts = written(dir.path());
        fs_err::remove_file(dir.path().join(NAMES[1])).unwrap();
        let error = wait_for_parts(dir.path(), &parts, 2 * PAUSE).unwrap_err();
        let said = format!("`{}` of rank 1 is not there", NAMES[1]);
        assert!(error.to_string().contains(&said), "{error}");
        assert!(error.hint().unwrap().contains("`run_dir`"));
        fs_err::write(dir.path().join(NAMES[1]), "other").unwrap();
        let error = wait_for_parts(dir.path(), &parts, PAUSE).unwrap_err();
        assert!(error.to_string().contains("is not what that rank wrote"));
    }
}
