//! The file that names the launchers whose ranks have begun the run in a stage's folder.
//!
//! `--resume never` and `--resume DIR` say how a launch begins, and not each of its attempts. An attempt is a later one if
//! any of its launchers is named: between two attempts a node may be replaced, but not all of them, which would be another
//! launch. So it does not matter how launchers count their attempts, nor which of them starts the first rank.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use asyncthink_data::write_bytes_atomic;
use fs_err as fs;

use crate::error::Result;

const NAME: &str = ".launch";

/// The file of a stage's folder.
pub(super) struct LaunchFile(PathBuf);

impl LaunchFile {
    pub(super) fn of(folder: &Path) -> Self {
        Self(folder.join(NAME))
    }

    pub(super) fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Whether a rank of one of these launchers has begun the run.
    pub(super) fn names_any(&self, launchers: &BTreeSet<String>) -> bool {
        !self.names().is_disjoint(launchers)
    }

    /// Names these launchers as those of the run; with `is_begun`, besides those that are named.
    pub(super) fn write(&self, launchers: &BTreeSet<String>, is_begun: bool) -> Result<()> {
        let mut names = launchers.clone();
        if is_begun {
            names.extend(self.names());
        }
        let text: Vec<&str> = names.iter().map(String::as_str).collect();
        Ok(write_bytes_atomic(&self.0, text.join("\n").as_bytes())?)
    }

    fn names(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_launch_is_known_while_one_of_its_launchers_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = LaunchFile::of(dir.path());
        assert!(!file.exists() && !file.names_any(&set(&["a", "b"])));
        file.write(&set(&["a", "b"]), false).unwrap();
        // One node after the other is replaced.
        for launchers in [["b", "c"], ["c", "d"]] {
            assert!(file.names_any(&set(&launchers)));
            file.write(&set(&launchers), true).unwrap();
        }
        assert!(!file.names_any(&set(&["e", "f"])));
        file.write(&set(&["e", "f"]), false).unwrap();
        assert!(!file.names_any(&set(&["a", "b", "c", "d"])));
    }
}
