//! The problems that `synth` left for the other stages.

use std::path::Path;

use asyncthink_checkpoint::RunLayout;
use asyncthink_data::parquet::read_problems;
use asyncthink_tasks::{Problem, TaskConfig};

use crate::error::{Error, Result};

/// Problems to train on.
///
/// # Errors
/// When the file is missing, damaged or empty.
pub fn train_problems(layout: &RunLayout, task: &TaskConfig) -> Result<Vec<Problem>> {
    read(layout, task, &layout.synth().train_problems())
}

/// Held-out problems; no training problem has one of their targets.
///
/// # Errors
/// When the file is missing, damaged or empty.
pub fn test_problems(layout: &RunLayout, task: &TaskConfig) -> Result<Vec<Problem>> {
    read(layout, task, &layout.synth().test_problems())
}

/// Problems to choose settings by; their targets are those of no other problem where the task generates them.
///
/// # Errors
/// When the file is missing, damaged or empty.
pub fn validation_problems(layout: &RunLayout, task: &TaskConfig) -> Result<Vec<Problem>> {
    read(layout, task, &layout.synth().validation_problems())
}

/// Fails while the files of `synth` may be of two runs: it writes its manifest last, and removes it first.
pub(crate) fn check_synth_is_complete(layout: &RunLayout) -> Result<()> {
    let manifest = layout.synth().manifest();
    if manifest.is_file() {
        Ok(())
    } else {
        Err(Error::NoRows { path: manifest })
    }
}

fn read(layout: &RunLayout, task: &TaskConfig, path: &Path) -> Result<Vec<Problem>> {
    if !path.exists() {
        return Err(Error::NoRows {
            path: path.to_owned(),
        });
    }
    check_synth_is_complete(layout)?;
    let problems = read_problems(path, task.task())?;
    if problems.is_empty() {
        return Err(Error::NoRows {
            path: path.to_owned(),
        });
    }
    Ok(problems)
}
