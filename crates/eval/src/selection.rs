//! The problems of an evaluation.

use asyncthink_data::{Draws, Stream};
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
    Ok(sample(settings.seed, found, wanted)
        .into_iter()
        .map(|index| Selected {
            index,
            problem: &problems[index],
        })
        .collect())
}

/// `wanted` of `0..found` in ascending order, each subset as likely as any other (selection sampling, Knuth's algorithm S).
fn sample(seed: u64, found: usize, wanted: usize) -> Vec<usize> {
    let mut draws = Draws::new(seed, Stream::EvaluationProblems, 0, 0);
    let mut needed = wanted;
    (0..found)
        .filter(|index| {
            let is_selected = needed > 0 && draws.below(found - index) < needed;
            needed -= usize::from(is_selected);
            is_selected
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_size_and_order_and_is_uniform() {
        assert_eq!(sample(1, 5, 5), [0, 1, 2, 3, 4]);
        assert!(sample(1, 5, 0).is_empty());
        let mut counts = [0; 10];
        for seed in 0..3000 {
            let indices = sample(seed, 10, 3);
            assert_eq!(indices, sample(seed, 10, 3));
            assert!(indices.len() == 3 && indices.is_sorted_by(|one, two| one < two));
            for index in indices {
                counts[index] += 1;
            }
        }
        // 900 expected, with a standard deviation of 25.
        assert!(
            counts.iter().all(|count| (775..1025).contains(count)),
            "{counts:?}"
        );
    }
}
