//! Whether the run's folder can be written, which is known before any work.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use asyncthink_checkpoint::{RunLayout, StageLock};
use asyncthink_recipe::{Recipe, Stage};

use crate::failure::{Failure, system_hint};

/// Bytes that are written to see whether there is room.
const PROBE: [u8; 4096] = [0; 4096];

/// Fails unless folders are where the stage wants them, or can be made, and take a file.
pub(crate) fn check(layout: &RunLayout, stage: Stage) -> Result<(), Failure> {
    let folders = [
        layout.root().to_owned(),
        layout.stage(stage),
        layout.checkpoints(stage),
        layout.episodes_folder(stage),
    ];
    for folder in &folders {
        let place = existing(folder);
        if !place.is_dir() {
            return Err(Failure::input(format!(
                "`run_dir`: `{}` is not a folder",
                place.display()
            ))
            .hint(HINT));
        }
        probe(&place).map_err(|error| refused(&place, &error))?;
    }
    Ok(())
}

/// Locks a stage and writes the recipe into the run's folder.
pub(crate) fn lock(
    layout: &RunLayout,
    stage: Stage,
    recipe: &Recipe,
) -> Result<StageLock, Failure> {
    let open = || -> Result<_, Failure> {
        let lock = StageLock::acquire(layout, stage)?;
        layout.write_recipe(&recipe.to_toml())?;
        Ok(lock)
    };
    open().map_err(Failure::before_work)
}

const HINT: &str =
    "make `run_dir` a folder that can be written, or choose another: `--set run_dir=DIR`";

fn refused(place: &Path, error: &io::Error) -> Failure {
    let cause = error.to_string();
    let hint = system_hint(&cause).unwrap_or(HINT);
    Failure::input(format!(
        "`run_dir`: cannot write into `{}`",
        place.display()
    ))
    .cause(cause)
    .hint(hint)
}

/// The path itself or the nearest one above it at which there is something.
fn existing(path: &Path) -> PathBuf {
    let is_there = |path: &&Path| fs::symlink_metadata(path).is_ok();
    let found = path.ancestors().find(is_there);
    found.unwrap_or(Path::new(".")).to_owned()
}

/// Writes a file and removes it. One that a kill leaves has the form of temporary files, which the next run removes.
fn probe(folder: &Path) -> io::Result<()> {
    let file = folder.join(format!(".probe.{}.tmp", std::process::id()));
    let written = write_probe(&file);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => written.and(Err(error)),
        _ => written,
    }
}

fn write_probe(file: &Path) -> io::Result<()> {
    let mut file = File::create(file)?;
    file.write_all(&PROBE)?;
    // Some file systems find out only now.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(run_dir: &Path) -> String {
        let failure = check(&RunLayout::new(run_dir), Stage::Sft).expect_err("not a folder");
        assert_eq!(failure.exit_code(), 2);
        failure.render()
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, "x").expect("a file");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).expect("a link");
        for (run_dir, named) in [
            (file.clone(), &file),
            (file.join("below/it"), &file),
            (link.clone(), &link),
        ] {
            let text = shown(&run_dir);
            assert!(
                text.contains(&format!("`{}` is not a folder", named.display())),
                "{text}"
            );
            assert!(text.contains("hint: make `run_dir` a folder"), "{text}");
        }
        let stage = dir.path().join("run/sft");
        fs::create_dir_all(stage.parent().expect("a folder")).expect("a folder");
        fs::write(&stage, "x").expect("a file");
        assert!(shown(&dir.path().join("run")).contains("run/sft` is not a folder"));
        let text = shown(Path::new("/proc/asyncthink/run"));
        assert!(
            text.contains("cannot write into `/proc`\n  Caused by: "),
            "{text}"
        );
        assert!(shown(Path::new("/dev/full")).contains("`/dev/full` is not a folder"));
    }

    #[test]
    fn a_full_disk_is_found_and_nothing_is_left() {
        let error = write_probe(Path::new("/dev/full")).expect_err("it has no room");
        let failure = refused(Path::new("runs"), &error);
        let text = failure.render();
        assert_eq!(failure.exit_code(), 2);
        assert!(
            text.contains("into `runs`\n  Caused by: No space left"),
            "{text}"
        );
        assert!(text.contains("hint: make room there"), "{text}");

        let dir = tempfile::tempdir().expect("a folder");
        let layout = RunLayout::new(&dir.path().join("new/run"));
        check(&layout, Stage::Grpo).expect("it can be made");
        let mut left = fs::read_dir(dir.path()).expect("a folder");
        assert!(left.next().is_none());
        check(&RunLayout::new(Path::new("new")), Stage::Grpo).expect("a relative path");
    }
}
