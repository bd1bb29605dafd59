//! `episodes/step_N.parquet`: what a step sampled, and whose remains a run removes.

use std::path::{Path, PathBuf};

use asyncthink_data::parquet::{EpisodeRecord, read_episodes, write_episodes};
use asyncthink_distributed::Ranks;
use fs_err as fs;

use crate::error::{Error, Result};

/// What the name of a rank's part has in place of `parquet`, before the rank.
const PART: &str = "rank_";

/// Writes the records of all ranks into one file: every rank leaves its own beside it, and the first puts them together in the
/// order of the ranks.
///
/// # Errors
/// On all ranks, when one cannot write or read.
pub(crate) fn write(path: &Path, mut records: Vec<EpisodeRecord>, ranks: &Ranks) -> Result<()> {
    if !ranks.is_first() {
        let written = write_episodes(&part(path, ranks.rank()), &records);
        ranks.agree(written.map_err(Error::from))?;
        return ranks.agree(Ok(()));
    }
    ranks.agree::<(), Error>(Ok(()))?;
    let gathered = (1..ranks.world_size()).try_for_each(|rank| -> Result<()> {
        let part = part(path, rank);
        records.extend(read_episodes(&part)?);
        Ok(fs::remove_file(part)?)
    });
    let written = gathered.and_then(|()| Ok(write_episodes(path, &records)?));
    ranks.agree(written)
}

fn part(path: &Path, rank: usize) -> PathBuf {
    path.with_extension(format!("{PART}{rank}"))
}

/// Removes episodes of steps after `step`, which the run is going to do again or never does: they are of another history. With
/// `aside`, the folder of a checkpoint of that history, they are moved there. Parts that a killed run left go as well.
///
/// # Errors
/// When a file cannot be removed.
pub(crate) fn remove_stale(folder: &Path, step: u64, aside: Option<&Path>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let parsed = name
            .to_str()
            .and_then(|name| name.strip_prefix("step_")?.split_once('.'))
            .and_then(|(number, extension)| Some((number.parse::<u64>().ok()?, extension)));
        let is_part = parsed.is_some_and(|(_, extension)| extension.starts_with(PART));
        let is_later =
            parsed.is_some_and(|(number, extension)| extension == "parquet" && number > step);
        match aside {
            Some(aside) if is_later => {
                let kept = aside.join("episodes");
                fs::create_dir_all(&kept)?;
                fs::rename(entry.path(), kept.join(&name))?;
            }
            _ if is_part || is_later => fs::remove_file(entry.path())?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_episodes_and_parts_go() {
        let dir = tempfile::tempdir().unwrap();
        remove_stale(&dir.path().join("none"), 3, None).unwrap();
        let stale = ["step_4.parquet", "step_2.rank_1", "step_12.rank_10"];
        let kept = ["step_3.parquet", "notes.txt", "step_x.parquet"];
        let aside = dir.path().join("aside");
        for name in stale.iter().chain(&kept) {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_stale(dir.path(), 3, Some(&aside)).unwrap();
        let moved = fs::read_dir(aside.join("episodes")).unwrap();
        let moved: Vec<_> = moved.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(moved, ["step_4.parquet"]);
        for name in &stale {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_stale(dir.path(), 3, None).unwrap();
        for name in stale {
            assert!(!dir.path().join(name).exists(), "{name}");
        }
        for name in kept {
            assert!(dir.path().join(name).exists(), "{name}");
        }
        assert!(part(Path::new("a/step_7.parquet"), 2).ends_with("step_7.rank_2"));
    }
}
