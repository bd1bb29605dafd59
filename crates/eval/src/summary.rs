//! From episodes to metrics with intervals.

use std::collections::{BTreeMap, BTreeSet};

use asyncthink_protocol::FormatError;
use asyncthink_recipe::EvalSplit;
use asyncthink_rollout::{Episode, GradedEpisode};
use serde::{Deserialize, Serialize};

use crate::bootstrap::{Bootstrap, Interval};

/// The result of one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The model's folder.
    pub model: String,
    /// Split of the problems.
    #[serde(default)]
    pub split: EvalSplit,
    /// Held-out problems.
    pub num_problems: usize,
    /// Different split keys of the problems, such as targets: the clusters that intervals resample.
    pub num_split_keys: usize,
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
type Part<'a> = Box<dyn Fn(&GradedEpisode) -> Option<(f64, f64)> + 'a>;

/// Key, label, whether it is a share, and what an episode adds.
type Definition = (String, String, bool, Part<'static>);

/// Computes every metric of `episodes`, which belong to at most `num_problems` problems of any indices.
pub fn summarise(
    episodes: &[GradedEpisode],
    num_problems: usize,
    bootstrap: &Bootstrap,
) -> Vec<Metric> {
    let indices: BTreeSet<usize> = episodes
        .iter()
        .map(|graded| graded.episode.prompt_index)
        .collect();
    let places: BTreeMap<usize, usize> = indices.into_iter().zip(0..).collect();
    definitions(episodes)
        .into_iter()
        .map(|(key, label, is_share, part)| {
            let mut parts = vec![(0.0, 0.0); num_problems];
            for graded in episodes {
                if let Some((numerator, denominator)) = part(graded) {
                    let sums: &mut (f64, f64) = &mut parts[places[&graded.episode.prompt_index]];
                    sums.0 += numerator;
                    sums.1 += denominator;
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

/// A value that counts once.
fn one(value: f64) -> (f64, f64) {
    (value, 1.0)
}

fn indicator(holds: bool) -> (f64, f64) {
    one(f64::from(u8::from(holds)))
}

/// A count of a valid episode; one that ended at its first error has not made all of its own.
fn valid(episode: &Episode, count: usize) -> Option<(f64, f64)> {
    share(episode, count, 1)
}

/// A part of a count, of a valid episode.
fn share(episode: &Episode, count: usize, of: usize) -> Option<(f64, f64)> {
    let is_valid = episode.format_error().is_none();
    is_valid.then_some((count as f64, of as f64))
}

fn definitions(episodes: &[GradedEpisode]) -> Vec<Definition> {
    let max_required = episodes.iter().map(|graded| graded.num_required).max();
    let mut definitions: Vec<Definition> = Vec::new();
    for count in 1..=max_required.unwrap_or(0) {
        definitions.push((
            format!("at_least_{count}_correct"),
            format!(">= {count} correct"),
            true,
            Box::new(move |graded| Some(indicator(graded.num_correct >= count))),
        ));
    }
    for (key, label, is_share, part) in FIXED {
        definitions.push((key.to_owned(), label.to_owned(), is_share, Box::new(part)));
    }
    for code in FormatError::CODES {
        definitions.push((
            format!("format_errors.{code}"),
            format!("  {code}"),
            true,
            Box::new(move |graded| {
                let error = graded.episode.format_error();
                Some(indicator(error.is_some_and(|error| error.code() == code)))
            }),
        ));
    }
    definitions
}

/// Numerator and denominator that one episode adds to a metric.
type FixedPart = fn(&GradedEpisode) -> Option<(f64, f64)>;

/// Metrics that every task has, in the order of the table.
const FIXED: [(&str, &str, bool, FixedPart); 15] = [
    ("all_correct", "all correct", true, |graded| {
        Some(indicator(graded.is_complete()))
    }),
    ("accuracy", "mean accuracy", true, |graded| {
        Some(one(graded.accuracy))
    }),
    ("latency_tokens", "latency, tokens", false, |graded| {
        Some(one(graded.concurrency?.latency_tokens as f64))
    }),
    ("eta_ratio", "concurrency eta/c", true, |graded| {
        Some(one(graded.concurrency?.eta_ratio))
    }),
    (
        "join_wait_share",
        "organizer waits at Joins",
        true,
        |graded| Some(one(graded.episode.join_wait_share()?)),
    ),
    ("forks_per_query", "Forks per query", false, |graded| {
        valid(&graded.episode, graded.episode.num_forks())
    }),
    (
        "copied_sub_queries",
        "sub-queries that copy the query",
        true,
        |GradedEpisode { episode, .. }| {
            share(
                episode,
                episode.num_copied_sub_queries(),
                episode.num_forks(),
            )
        },
    ),
    (
        "repeated_attempts",
        "attempts repeated by another agent",
        true,
        |graded| {
            let attempts = graded.attempts?;
            share(
                &graded.episode,
                attempts.num_repeated,
                attempts.num_attempts,
            )
        },
    ),
    (
        "empty_returns_per_query",
        "empty returns per query",
        false,
        |graded| valid(&graded.episode, graded.episode.num_empty_returns()),
    ),
    (
        "idle_workers_per_query",
        "idle workers per query",
        false,
        |graded| valid(&graded.episode, graded.episode.num_idle_workers()),
    ),
    (
        "unread_workers_per_query",
        "unread workers per query",
        false,
        |graded| valid(&graded.episode, graded.episode.num_unread_workers()),
    ),
    (
        "cancelled_workers_per_query",
        "cancelled workers per query",
        false,
        |graded| valid(&graded.episode, graded.episode.num_cancelled_workers()),
    ),
    (
        "decoded_tokens_per_query",
        "tokens per query",
        false,
        |graded| valid(&graded.episode, graded.episode.decoded_tokens()),
    ),
    (
        "missing_eos",
        "end of sequence missing",
        true,
        |GradedEpisode { episode, .. }| {
            share(
                episode,
                episode.num_missing_eos(),
                episode.num_completed_agents(),
            )
        },
    ),
    ("format_errors", "format errors", true, |graded| {
        Some(indicator(graded.episode.format_error().is_some()))
    }),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::graded;

    /// Every problem has a split key of its own.
    fn bootstrap(num_problems: usize) -> Bootstrap {
        let keys: Vec<String> = (0..num_problems).map(|index| index.to_string()).collect();
        Bootstrap::new(&keys, 100, 0.95, 1)
    }

    #[test]
    fn errors_count_as_wrong_and_stay_out_of_latency_and_concurrency() {
        let episodes = [
            graded(0, 2, false),
            graded(0, 1, false),
            graded(1, 0, true),
            graded(1, 0, false),
        ];
        let metrics = summarise(&episodes, 2, &bootstrap(2));
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
            ("idle_workers_per_query", 1.0 / 3.0),
            ("unread_workers_per_query", 5.0 / 3.0),
            ("copied_sub_queries", 0.0),
            // Only episodes of the second problem know their attempts; one of them is valid.
            ("repeated_attempts", 0.25),
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
        let metrics = summarise(&episodes, 1, &bootstrap(1));
        let latency = metrics
            .iter()
            .find(|metric| metric.key == "latency_tokens")
            .unwrap();
        assert_eq!(latency.interval, None);
    }
}
