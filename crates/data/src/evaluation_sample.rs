//! The problems of an evaluation out of all that there are.

use crate::seeds::{Draws, Stream};

/// `wanted` of `0..found` in ascending order, each subset as likely as any other (selection sampling, Knuth's algorithm S).
pub fn evaluation_sample(seed: u64, found: usize, wanted: usize) -> Vec<usize> {
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
        assert_eq!(evaluation_sample(1, 5, 5), [0, 1, 2, 3, 4]);
        assert!(evaluation_sample(1, 5, 0).is_empty());
        let mut counts = [0; 10];
        for seed in 0..3000 {
            let indices = evaluation_sample(seed, 10, 3);
            assert_eq!(indices, evaluation_sample(seed, 10, 3));
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
