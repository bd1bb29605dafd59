//! From episodes to metrics with intervals.

use asyncthink_protocol::FormatError;
use asyncthink_rollout::{Episode, GradedEpisode};
use serde::{Deserialize, Serialize};

use crate::bootstrap::{Bootstrap, Interval};

/// The result of one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The model's folder.
    pub model: String,
    /// Held-out problems.
    pub num_problems: usize,
    /// Episodes per problem.
    pub samples_per_problem: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Coverage of the intervals.
    pub confidence: f64,
    /// Resamples behind the intervals.
    pub bootstrap_samples: usize,
    /// Seed of sampling and resampling.
    pub seed: u64,
    /// The metrics, in the order of the table.
    pub metrics: Vec<Metric>,
}

/// One metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Stable key, for instance `all_correct`.
    pub key: String,
    /// What the table calls it.
    pub label: String,
    /// Whether the value is a share, which the table shows in percent.
    pub is_share: bool,
    /// The estimate with its interval; `None` where no episode has a value.
    pub interval: Option<Interval>,
}

impl Evaluation {
    /// The interval of a metric by its key.
    pub fn metric(&self, key: &str) -> Option<Interval> {
        self.metrics
            .iter()
            .find(|metric| metric.key == key)?
            .interval
    }
}

/// Numerator and denominator that one episode adds to a metric; `None` adds nothing.
type Part<'a> = Box<dyn Fn(&GradedEpisode) -> Option<f64> + 'a>;

/// Computes every metric of `episodes`, which belong to problems `0..num_problems`.
pub fn summarise(
    episodes: &[GradedEpisode],
    num_problems: usize,
    bootstrap: &Bootstrap,
) -> Vec<Metric> {
    definitions(episodes)
        .into_iter()
        .map(|(key, label, is_share, part)| {
            let mut parts = vec![(0.0, 0.0); num_problems];
            for graded in episodes {
                if let Some(value) = part(graded) {
                    let sums: &mut (f64, f64) = &mut parts[graded.episode.prompt_index];
                    sums.0 += value;
                    sums.1 += 1.0;
                }
            }
            Metric {
                key,
                label,
                is_share,
                interval: bootstrap.ratio(&parts),
            }
        })
        .collect()
}

/// A count of a valid episode; one that ended at its first error has not made all of its own.
fn valid(episode: &Episode, count: usize) -> Option<f64> {
    episode.format_error().is_none().then_some(count as f64)
}

fn definitions(episodes: &[GradedEpisode]) -> Vec<(String, String, bool, Part<'static>)> {
    let indicator = |holds: bool| Some(f64::from(u8::from(holds)));
    let max_required = episodes
        .iter()
        .map(|graded| graded.num_required)
        .max()
        .unwrap_or(0);
    let mut definitions: Vec<(String, String, bool, Part<'static>)> = Vec::new();
    for count in 1..=max_required {
        definitions.push((
            format!("at_least_{count}_correct"),
            format!(">= {count} correct"),
            true,
            Box::new(move |graded| indicator(graded.num_correct >= count)),
        ));
    }
    let mut add = |key: &str, label: &str, is_share, part: Part<'static>| {
        definitions.push((key.to_owned(), label.to_owned(), is_share, part));
    };
    add(
        "all_correct",
        "all correct",
        true,
        Box::new(move |graded| indicator(graded.is_complete())),
    );
    add(
        "accuracy",
        "mean accuracy",
        true,
        Box::new(|graded| Some(graded.accuracy)),
    );
    add(
        "latency_tokens",
        "latency, tokens",
        false,
        Box::new(|graded| graded.concurrency.map(|one| one.latency_tokens as f64)),
    );
    add(
        "eta_ratio",
        "concurrency eta/c",
        true,
        Box::new(|graded| graded.concurrency.map(|one| one.eta_ratio)),
    );
    add(
        "forks_per_query",
        "Forks per query",
        false,
        Box::new(|graded| valid(&graded.episode, graded.episode.num_forks())),
    );
    add(
        "empty_returns_per_query",
        "empty returns per query",
        false,
        Box::new(|graded| valid(&graded.episode, graded.episode.num_empty_returns())),
    );
    add(
        "cancelled_workers_per_query",
        "cancelled workers per query",
        false,
        Box::new(|graded| valid(&graded.episode, graded.episode.num_cancelled_workers())),
    );
    add(
        "decoded_tokens_per_query",
        "tokens per query",
        false,
        Box::new(|graded| valid(&graded.episode, graded.episode.decoded_tokens())),
    );
    add(
        "format_errors",
        "format errors",
        true,
        Box::new(move |graded| indicator(graded.episode.format_error().is_some())),
    );
    for code in FormatError::CODES {
        add(
            &format!("format_errors.{code}"),
            &format!("  {code}"),
            true,
            Box::new(move |graded| {
                let error = graded.episode.format_error();
                indicator(error.is_some_and(|error| error.code() == code))
            }),
        );
    }
    definitions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::graded;

    #[test]
    fn errors_count_as_wrong_and_stay_out_of_latency_and_concurrency() {
        let episodes = [
            graded(0, 2, false),
            graded(0, 1, false),
            graded(1, 0, true),
            graded(1, 0, false),
        ];
        let metrics = summarise(&episodes, 2, &Bootstrap::new(2, 100, 0.95, 1));
        let value = |key: &str| {
            metrics
                .iter()
                .find(|metric| metric.key == key)
                .unwrap()
                .interval
                .unwrap()
                .value
        };
        let expected = [
            ("at_least_1_correct", 0.5),
            ("at_least_2_correct", 0.25),
            ("all_correct", 0.25),
            ("accuracy", 0.375),
            ("latency_tokens", (100.0 + 100.0 + 120.0) / 3.0),
            ("eta_ratio", 0.5),
            // Of the three valid episodes, one is of the second problem.
            ("forks_per_query", 5.0 / 3.0),
            ("empty_returns_per_query", 1.0 / 3.0),
            ("cancelled_workers_per_query", 1.0),
            ("decoded_tokens_per_query", 50.0),
            ("format_errors", 0.25),
            ("format_errors.no_answer", 0.25),
            ("format_errors.malformed", 0.0),
        ];
        for (key, expected) in expected {
            assert!(
                (value(key) - expected).abs() < 1e-12,
                "{key}: {}",
                value(key)
            );
        }
    }

    #[test]
    fn without_a_valid_episode_latency_has_no_value() {
        let episodes = [graded(0, 0, true)];
        let metrics = summarise(&episodes, 1, &Bootstrap::new(1, 10, 0.95, 1));
        let latency = metrics
            .iter()
            .find(|metric| metric.key == "latency_tokens")
            .unwrap();
        assert_eq!(latency.interval, None);
    }
}
