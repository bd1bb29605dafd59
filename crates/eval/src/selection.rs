//! The problems of an evaluation.

use asyncthink_data::evaluation_sample;
use asyncthink_tasks::Problem;

use crate::error::{Error, Result};
use crate::settings::EvalSettings;

/// A held-out problem that is evaluated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selected<'a> {
    /// Index among all held-out problems.
    pub(crate) index: usize,
    pub(crate) problem: &'a Problem,
}

/// The problems that the settings ask for, in the order that they have among all: all of them, or a uniform sample without
/// replacement that depends on the seed and the two numbers only.
///
/// The first ones would be no sample of a file that is sorted, by difficulty for instance.
///
/// # Errors
/// [`Error::TooFewProblems`]: a smaller sample than the recipe asks for would pass for the one asked for.
pub(crate) fn select<'a>(
    problems: &'a [Problem],
    settings: &EvalSettings,
) -> Result<Vec<Selected<'a>>> {
    let found = problems.len();
    let wanted = settings.num_problems.unwrap_or(found);
    if wanted > found {
        return Err(Error::TooFewProblems { wanted, found });
    }
    Ok(evaluation_sample(settings.seed, found, wanted)
        .into_iter()
        .map(|index| Selected {
            index,
            problem: &problems[index],
        })
        .collect())
}
