//! Folders of the output and the error files of ranks.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::ids::{LocalRank, NodeRank};
use crate::plan::LaunchPlan;

/// Most launches of one run id that have folders beside one another.
const MAX_SAME_ID: u32 = 10_000;

/// The folder of one launch on one node: `attempt_N/<local rank>/` below it.
#[derive(Debug)]
pub(crate) struct LogFolder {
    root: PathBuf,
    /// Removed at the end, where only error files are in it.
    _temporary: Option<TempDir>,
}

/// The folder of one rank in one attempt.
#[derive(Debug)]
pub(crate) struct RankFolder(PathBuf);

impl LogFolder {
    /// Makes the folder; an existing one of an earlier launch is left alone.
    pub(crate) fn create(plan: &LaunchPlan, node_rank: NodeRank) -> io::Result<Self> {
        let Some(log_dir) = &plan.output.log_dir else {
            let prefix = format!("asyncthink-{}-", plan.run_id.as_str());
            let mut temporary = tempfile::Builder::new().prefix(&prefix).tempdir()?;
            temporary.disable_cleanup(plan.output.has_files());
            return Ok(Self {
                root: temporary.path().to_owned(),
                _temporary: Some(temporary),
            });
        };
        // Nodes may share the file system, and have the same local ranks.
        let node = (plan.nodes.num() > 1).then(|| format!("node_{node_rank}"));
        for num in 1..=MAX_SAME_ID {
            let run = match num {
                1 => plan.run_id.as_str().to_owned(),
                num => format!("{}-{num}", plan.run_id.as_str()),
            };
            let mut root = log_dir.join(run);
            if let Some(node) = &node {
                root.push(node);
            }
            fs_err::create_dir_all(root.parent().unwrap_or(log_dir))?;
            match fs_err::create_dir(&root) {
                // Ranks get this path, and may change their folder.
                Ok(()) => {
                    return Ok(Self {
                        root: std::path::absolute(root)?,
                        _temporary: None,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!(
            "`{}` holds the logs of {MAX_SAME_ID} launches with the run id `{}`",
            log_dir.display(),
            plan.run_id.as_str()
        )))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn rank(&self, attempt: u32, local_rank: LocalRank) -> io::Result<RankFolder> {
        let folder = self
            .root
            .join(format!("attempt_{attempt}"))
            .join(local_rank.to_string());
        fs_err::create_dir_all(&folder)?;
        Ok(RankFolder(folder))
    }
}

impl RankFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn stdout(&self) -> PathBuf {
        self.0.join("stdout.log")
    }

    pub(crate) fn stderr(&self) -> PathBuf {
        self.0.join("stderr.log")
    }

    pub(crate) fn error_file(&self) -> PathBuf {
        self.0.join("error.json")
    }
}
