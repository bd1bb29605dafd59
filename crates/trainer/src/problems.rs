//! The problems that `synth` left for the other stages.

use std::path::Path;

use asyncthink_data::parquet::read_problems;
use asyncthink_recipe::Recipe;
use asyncthink_tasks::Problem;

use crate::error::{Error, Result};
use crate::layout::RunLayout;

/// Problems to train on.
///
/// # Errors
/// When the file is missing, damaged or empty.
pub fn train_problems(recipe: &Recipe) -> Result<Vec<Problem>> {
    read(
        recipe,
        &RunLayout::new(&recipe.run_dir).synth().train_problems(),
    )
}

/// Held-out problems; no training problem has one of their targets.
///
/// # Errors
/// When the file is missing, damaged or empty.
pub fn test_problems(recipe: &Recipe) -> Result<Vec<Problem>> {
    read(
        recipe,
        &RunLayout::new(&recipe.run_dir).synth().test_problems(),
    )
}

/// Fails while the files of `synth` may be of two runs: it writes its manifest last, and removes it first.
pub(crate) fn check_synth_is_complete(recipe: &Recipe) -> Result<()> {
    let manifest = RunLayout::new(&recipe.run_dir).synth().manifest();
    if manifest.is_file() {
        Ok(())
    } else {
        Err(Error::NoRows { path: manifest })
    }
}

fn read(recipe: &Recipe, path: &Path) -> Result<Vec<Problem>> {
    if !path.exists() {
        return Err(Error::NoRows {
            path: path.to_owned(),
        });
    }
    check_synth_is_complete(recipe)?;
    let problems = read_problems(path, recipe.task.task())?;
    if problems.is_empty() {
        return Err(Error::NoRows {
            path: path.to_owned(),
        });
    }
    Ok(problems)
}
