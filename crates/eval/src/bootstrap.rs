//! Percentile bootstrap over clusters of problems.

use std::collections::BTreeMap;

use asyncthink_data::{Draws, Stream};
use serde::{Deserialize, Serialize};

/// An estimate with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate on the sample itself.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Which problems each resample holds. One draw serves all metrics, so that their intervals belong together.
///
/// Problems that share a split key, such as a target, are one cluster and are drawn together: a claim about unseen targets
/// rests on as many independent observations as there are targets, however many problems each has.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    resamples: Vec<Vec<usize>>,
    num_problems: usize,
    num_clusters: usize,
    confidence: f64,
}

impl Bootstrap {
    /// Draws `num_resamples` resamples with replacement of the clusters of `keys`, which holds a key per problem.
    pub fn new(keys: &[String], num_resamples: usize, confidence: f64, seed: u64) -> Self {
        let mut members: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (problem, key) in keys.iter().enumerate() {
            members.entry(key).or_default().push(problem);
        }
        // By first problem, so that clusters of one problem each are drawn as the problems are.
        let mut clusters: Vec<Vec<usize>> = members.into_values().collect();
        clusters.sort();
        let resamples = (0..num_resamples)
            .map(|resample| {
                let mut draws = Draws::new(seed, Stream::Bootstrap, resample as u64, 0);
                (0..clusters.len())
                    .flat_map(|_| clusters[draws.below(clusters.len())].iter().copied())
                    .collect()
            })
            .collect();
        Self {
            resamples,
            num_problems: keys.len(),
            num_clusters: clusters.len(),
            confidence,
        }
    }

    /// Clusters that are resampled.
    pub fn num_clusters(&self) -> usize {
        self.num_clusters
    }

    /// Estimate and percentile interval of a ratio of sums, `sum(numerator) / sum(denominator)` over problems.
    ///
    /// `None` if the denominators are zero throughout. Resamples in which they are have no value and are left out.
    ///
    /// # Panics
    /// If there is not one pair per problem.
    pub fn ratio(&self, parts: &[(f64, f64)]) -> Option<Interval> {
        assert_eq!(parts.len(), self.num_problems, "one pair per problem");
        let value = ratio(parts.iter().copied())?;
        let mut values: Vec<f64> = self
            .resamples
            .iter()
            .filter_map(|problems| ratio(problems.iter().map(|&problem| parts[problem])))
            .collect();
        values.sort_by(f64::total_cmp);
        let tail = (1.0 - self.confidence) / 2.0;
        Some(Interval {
            value,
            low: quantile(&values, tail).unwrap_or(value),
            high: quantile(&values, 1.0 - tail).unwrap_or(value),
        })
    }
}

fn ratio(parts: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (numerator, denominator) =
        parts.fold((0.0, 0.0), |sums, part| (sums.0 + part.0, sums.1 + part.1));
    (denominator > 0.0).then(|| numerator / denominator)
}

/// Linear interpolation between order statistics, as numpy's default.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = share.clamp(0.0, 1.0) * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a position inside the slice"
    )]
    let below = (position.floor() as usize).min(last);
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A key of its own for each of so many problems.
    fn distinct(num_problems: usize) -> Vec<String> {
        (0..num_problems).map(|index| index.to_string()).collect()
    }

    #[test]
    fn problems_of_one_target_are_one_observation() {
        // 200 samples of 8 targets with 25 problems each; whether a problem is solved depends on its target alone. Drawn by
        // problems, intervals of 90 % cover the truth in about 30 % of the samples.
        let keys: Vec<String> = (0..200).map(|problem| (problem % 8).to_string()).collect();
        let mut covered = [0, 0];
        for sample in 0..200 {
            let mut draws = Draws::new(sample, Stream::Evaluation, 1, 0);
            let solved: Vec<bool> = (0..8).map(|_| draws.below(2) == 0).collect();
            let parts: Vec<(f64, f64)> = (0..200)
                .map(|problem| (f64::from(u8::from(solved[problem % 8])), 1.0))
                .collect();
            for (count, keys) in covered.iter_mut().zip([&keys, &distinct(200)]) {
                let bootstrap = Bootstrap::new(keys, 200, 0.9, sample);
                let interval = bootstrap.ratio(&parts).unwrap();
                *count += usize::from(interval.low <= 0.5 && 0.5 <= interval.high);
            }
        }
        let [by_target, by_problem] = covered;
        assert!((150..=195).contains(&by_target), "{by_target}");
        assert!(by_problem < 100, "{by_problem}");
        assert_eq!(Bootstrap::new(&keys, 1, 0.9, 1).num_clusters(), 8);
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn intervals_cover_the_truth_as_often_as_they_say() {
        // 200 samples of 60 coin flips: the interval of 90 % must cover 0.3 in about 90 % of them.
        let mut covered = 0;
        for sample in 0..200 {
            let mut draws = Draws::new(sample, Stream::Evaluation, 0, 0);
            let parts: Vec<(f64, f64)> = (0..60)
                .map(|_| (f64::from(u8::from(draws.below(10) < 3)), 1.0))
                .collect();
            let interval = Bootstrap::new(&distinct(60), 300, 0.9, sample)
                .ratio(&parts)
                .unwrap();
            covered += usize::from(interval.low <= 0.3 && 0.3 <= interval.high);
        }
        assert!((165..=195).contains(&covered), "{covered}");
    }

    #[test]
    fn nothing_valid_has_no_value() {
        assert_eq!(
            Bootstrap::new(&distinct(2), 10, 0.95, 1).ratio(&[(0.0, 0.0), (0.0, 0.0)]),
            None
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn equal_problems_have_no_spread_and_intervals_are_ordered(
            parts in prop::collection::vec((0.0_f64..1.0, 0.5_f64..2.0), 1..12),
            seed: u64,
        ) {
            let bootstrap = Bootstrap::new(&distinct(parts.len()), 50, 0.95, seed);
            let interval = bootstrap.ratio(&parts).unwrap();
            prop_assert!(interval.low <= interval.high);
            let equal = vec![parts[0]; parts.len()];
            let interval = bootstrap.ratio(&equal).unwrap();
            prop_assert!((interval.high - interval.low).abs() < 1e-12);
        }
    }
}
