//! Whether all ranks see one run folder.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

use asyncthink_checkpoint::StageLock;
use asyncthink_distributed::Ranks;

use crate::error::{Error, Result};
use crate::rank_folder::RankFolder;
use crate::settings::RunSettings;

/// Longest time that a file system may take to show what another machine has written.
const LONGEST_LAG: Duration = Duration::from_mins(1);

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// How long to wait for what another rank has written. The others wait for this one meanwhile, and must not run out of time.
pub(super) fn longest_lag(ranks: &Ranks) -> Duration {
    LONGEST_LAG.min(ranks.group().timeout() / 2)
}

/// Checks that all ranks see one run folder: the first one leaves a number there that nobody else can know.
///
/// # Errors
/// On every rank, naming those that do not see it; when another process works in the folder; when a rank is lost.
pub(crate) fn check_shared_folder(settings: &RunSettings, ranks: &Ranks) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let RunSettings { stage, layout, .. } = settings;
    ranks.set_phase(&format!("{}: looking for the run folder", stage.name()));
    let token = format!("{:016x}", RandomState::new().build_hasher().finish());
    let leave = || -> Result<StageLock> {
        let lock = StageLock::acquire(layout, *stage)?;
        lock.leave(&token)?;
        Ok(lock)
    };
    let lock = ranks.agree(ranks.is_first().then(leave).transpose())?;
    let token = ranks.first_rank_bytes(token.as_bytes())?;
    let sees_it = || StageLock::left(layout, *stage).is_some_and(|left| left.as_bytes() == token);
    let (began, limit) = (Instant::now(), longest_lag(ranks));
    let mut is_shared = sees_it();
    while !is_shared && began.elapsed() < limit {
        std::thread::sleep(PAUSE);
        is_shared = sees_it();
    }
    let own = RankFolder {
        rank: ranks.rank(),
        host: asyncthink_launch::host_name(),
        folder: std::path::absolute(layout.root())?,
    };
    let failed = |error| Error::stage("comparing the folders of the ranks", error);
    let own = serde_json::to_vec(&(is_shared, own)).map_err(failed)?;
    let all = ranks.gather_bytes(&own)?;
    // Until here no rank has begun to read its data, and none looks for the number any more.
    drop(lock);
    let all = all.iter().map(|bytes| serde_json::from_slice(bytes));
    let all: Vec<(bool, RankFolder)> = all.collect::<Result<_, _>>().map_err(failed)?;
    let first = all[0].1.clone();
    let apart = all.into_iter().filter(|(is_shared, _)| !is_shared);
    let apart: Vec<RankFolder> = apart.map(|(_, rank)| rank).collect();
    if apart.is_empty() {
        return Ok(());
    }
    Err(Error::FolderNotShared { first, apart })
}
