//! The report of the stage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::topology::describe;
use crate::trace::SynthTrace;

/// Counts of the files, and the quality of the teacher: a model that imitates perfectly would reach it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SynthReport {
    /// The files of an earlier call with the same inputs were kept.
    #[serde(skip)]
    pub is_reused: bool,
    /// Training problems.
    pub num_train_problems: usize,
    /// Problems to choose settings by.
    #[serde(default)]
    pub num_validation_problems: usize,
    /// Held-out problems.
    pub num_test_problems: usize,
    /// Held-out problems whose split key, such as the target, a training problem has too. Generated problems have none; those of given files
    /// may, and then a measurement on them is not one on new targets.
    #[serde(default)]
    pub num_seen_targets: usize,
    /// Traces that passed the rules.
    pub num_traces: usize,
    /// Query-response pairs: one per organizer and one per worker.
    pub num_pairs: usize,
    /// Refused traces by the rule that refused them.
    pub rejected: BTreeMap<String, u64>,
    /// Traces per sequence of Forks and Joins.
    pub topologies: BTreeMap<String, u64>,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Tokens of all pairs, prompts included.
    pub num_tokens: u64,
    /// Most tokens of a pair.
    pub max_pair_tokens: usize,
    /// Mean share of the required solutions that answers hold.
    pub mean_accuracy: f64,
    /// Share of the traces whose answer holds all of them.
    pub all_correct: f64,
    /// Mean concurrency as a share of the capacity.
    pub mean_eta_ratio: f64,
    /// Mean critical path.
    pub mean_latency_tokens: f64,
}

/// Figures of one trace that the report sums up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TraceFigures {
    /// The sequence of Forks and Joins.
    pub(crate) topology: String,
    /// Tokens of each pair, prompts included.
    pub(crate) pair_tokens: Vec<usize>,
    /// Share of the required solutions that the answer holds.
    pub(crate) accuracy: f64,
    /// Whether it holds all of them.
    pub(crate) is_all_correct: bool,
    /// Concurrency as a share of the capacity.
    pub(crate) eta_ratio: f64,
    /// The critical path.
    pub(crate) latency_tokens: u64,
}

impl TraceFigures {
    pub(crate) fn of(trace: &SynthTrace) -> Self {
        let concurrency = trace.trace.timeline().concurrency(true);
        Self {
            topology: describe(&trace.topology),
            pair_tokens: trace.pair_tokens.clone(),
            accuracy: trace.grade.reward,
            is_all_correct: trace.grade.is_all_correct(),
            eta_ratio: concurrency.eta_ratio,
            latency_tokens: concurrency.latency_tokens,
        }
    }
}

impl SynthReport {
    /// Takes a trace into the sums; means are of the traces taken so far.
    pub(crate) fn add(&mut self, trace: &TraceFigures) {
        *self.topologies.entry(trace.topology.clone()).or_default() += 1;
        self.num_traces += 1;
        self.num_pairs += trace.pair_tokens.len();
        self.num_tokens += trace
            .pair_tokens
            .iter()
            .map(|&tokens| tokens as u64)
            .sum::<u64>();
        let longest = trace.pair_tokens.iter().max().copied().unwrap_or(0);
        self.max_pair_tokens = self.max_pair_tokens.max(longest);
        let weight = 1.0 / self.num_traces as f64;
        let all_correct = f64::from(u8::from(trace.is_all_correct));
        for (mean, value) in [
            (&mut self.mean_accuracy, trace.accuracy),
            (&mut self.all_correct, all_correct),
            (&mut self.mean_eta_ratio, trace.eta_ratio),
            (&mut self.mean_latency_tokens, trace.latency_tokens as f64),
        ] {
            *mean += (value - *mean) * weight;
        }
    }

    pub(crate) fn rejected_text(&self) -> String {
        let reasons: Vec<String> = self
            .rejected
            .iter()
            .map(|(reason, count)| format!("{count} by `{reason}`"))
            .collect();
        if reasons.is_empty() {
            "none".to_owned()
        } else {
            reasons.join(", ")
        }
    }
}
