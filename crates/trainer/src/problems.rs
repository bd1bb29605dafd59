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
    read(&RunLayout::new(&recipe.run_dir).synth().train_problems())
}

/// Held-out problems; no training problem has one of their targets.
///
/// # Errors
/// When the file is missing, damaged or empty.
pub fn test_problems(recipe: &Recipe) -> Result<Vec<Problem>> {
    read(&RunLayout::new(&recipe.run_dir).synth().test_problems())
}

fn read(path: &Path) -> Result<Vec<Problem>> {
    if !path.exists() {
        return Err(Error::NoRows {
            path: path.to_owned(),
        });
    }
    let problems = read_problems(path)?;
    if problems.is_empty() {
        return Err(Error::NoRows {
            path: path.to_owned(),
        });
    }
    Ok(problems)
}
