//! `latest` and `best`: symbolic links beside the checkpoints that they name.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::disk::{remove, sync};
use crate::error::Result;

pub(crate) const LATEST: &str = "latest";
pub(crate) const BEST: &str = "best";

/// Names with this prefix are unfinished or condemned; they are removed at the next start.
pub(crate) const HIDDEN: &str = ".partial-";

/// Name of the checkpoint of a step.
pub(crate) fn name_of(step: u64) -> String {
    format!("step_{step}")
}

/// Step of a checkpoint's name: `step_7`, and not `step_7_backup`, `step_07` or `step_+7`.
pub(crate) fn step_of_name(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step_")?.parse().ok()?;
    (name_of(step) == name).then_some(step)
}

/// The step that a link in `folder` names, whether or not its checkpoint is there.
pub(crate) fn named_step(folder: &Path, link: &str) -> Option<u64> {
    let target = fs::read_link(folder.join(link)).ok()?;
    step_of_name(target.file_name()?.to_str()?)
}

/// Makes a link name the checkpoint of `step`.
pub(crate) fn point(folder: &Path, link: &str, step: u64) -> Result<()> {
    let target = fs::read_link(folder.join(link));
    if target.is_ok_and(|target| target == Path::new(&name_of(step))) {
        return Ok(());
    }
    prepare(folder, link, step)?;
    commit(folder, link)
}

/// Makes the link that [`commit`] will put in place.
pub(crate) fn prepare(folder: &Path, link: &str, step: u64) -> Result<()> {
    let fresh = prepared(folder, link);
    remove(&fresh)?;
    fs::os::unix::fs::symlink(name_of(step), &fresh)?;
    Ok(())
}

/// Puts a prepared link in place.
pub(crate) fn commit(folder: &Path, link: &str) -> Result<()> {
    fs::rename(prepared(folder, link), folder.join(link))?;
    sync(folder)
}

/// Puts a link in place that a killed process had prepared for a checkpoint which has its name by now.
pub(crate) fn recover(folder: &Path, link: &str) -> Result<()> {
    let fresh = prepared(folder, link);
    let has_target = fresh.is_symlink() && fresh.is_dir();
    // A folder in the link's place is looked at first.
    if has_target && !is_folder(folder, link) {
        commit(folder, link)?;
    }
    Ok(())
}

/// Whether a folder lies in a link's place, as a copy has that followed links.
pub(crate) fn is_folder(folder: &Path, link: &str) -> bool {
    fs::symlink_metadata(folder.join(link)).is_ok_and(|found| found.is_dir())
}

fn prepared(folder: &Path, link: &str) -> PathBuf {
    folder.join(format!("{HIDDEN}{link}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_checkpoints_only_as_it_is_written() {
        assert_eq!(step_of_name("step_7"), Some(7));
        for name in [
            "step_07",
            "step_+7",
            "step_7_backup",
            "step_",
            "set-aside-step_7",
        ] {
            assert_eq!(step_of_name(name), None, "{name}");
        }
    }
}
