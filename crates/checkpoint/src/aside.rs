//! Checkpoints that are in the way and must not be lost: they get another name.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::disk::{is_there, remove, sync};
use crate::error::Result;
use crate::links::{self, BEST, HIDDEN, LATEST, name_of};
use crate::manifest::Manifest;
use crate::state::TrainerState;

/// Names with this prefix are of checkpoints that a run has left behind; nothing looks at them or removes them.
const SET_ASIDE: &str = "set-aside-";

/// A checkpoint that got another name, so that nothing is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it was.
    pub from: PathBuf,
    /// Where it is.
    pub to: PathBuf,
}

impl std::fmt::Display for SetAside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.to.file_name().unwrap_or_default().to_string_lossy();
        write!(f, "`{}` is set aside as `{name}`", self.from.display())
    }
}

/// Gives what has `name` a name that nothing looks at, so that it is neither in the way nor lost.
pub(crate) fn set_aside(folder: &Path, name: &str) -> Result<SetAside> {
    let plain = format!("{SET_ASIDE}{name}");
    let numbered = (2_u64..).map(|number| format!("{plain}.{number}"));
    let to = std::iter::once(plain.clone())
        .chain(numbered)
        .map(|name| folder.join(name))
        .find(|to| !is_there(to))
        .unwrap_or_else(|| folder.join(&plain));
    let from = folder.join(name);
    fs::rename(&from, &to)?;
    sync(folder)?;
    Ok(SetAside { from, to })
}

/// Gives folders in the place of `latest` and `best` the name of their step.
pub(crate) fn replace_copied_links(folder: &Path) -> Result<Vec<SetAside>> {
    let mut all = Vec::new();
    for link in [LATEST, BEST] {
        if !links::is_folder(folder, link) {
            continue;
        }
        let Some(TrainerState { step, .. }) = TrainerState::read(&folder.join(link)) else {
            all.push(set_aside(folder, link)?);
            continue;
        };
        all.extend(merge_copy(folder, link, step)?);
        if link == LATEST {
            links::point(folder, LATEST, step)?;
        }
    }
    Ok(all)
}

/// Makes the copy in the place of `link` the checkpoint of `step`, unless that is there and whole.
fn merge_copy(folder: &Path, link: &str, step: u64) -> Result<Option<SetAside>> {
    let (copy, dir) = (folder.join(link), folder.join(name_of(step)));
    let mut replaced = None;
    if is_there(&dir) {
        let is_same = Manifest::is_same(&copy, &dir);
        if is_same && Manifest::verify(&dir).is_ok() {
            let hidden = folder.join(format!("{HIDDEN}copied-{link}"));
            remove(&hidden)?;
            fs::rename(&copy, &hidden)?;
            remove(&hidden)?;
            return Ok(None);
        }
        if !is_same || Manifest::verify(&copy).is_err() {
            return Ok(Some(set_aside(folder, link)?));
        }
        replaced = Some(set_aside(folder, &name_of(step))?);
    }
    fs::rename(&copy, &dir)?;
    sync(folder)?;
    Ok(replaced)
}
