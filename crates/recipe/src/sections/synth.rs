//! `[synth]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named_table::NamedTable;
use crate::defaults::{MAX_ITEMS, count, zero};

/// `[synth]`: cold-start traces written by a teacher. An attempt is
/// one line: an expression, its value, and whether that is the target. The
/// traces teach the format; how often they do the right thing decides what
/// policy optimisation can select from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SynthSection {
    /// Traces to write. A trace of n sub-queries gives n + 1 training pairs.
    #[schemars(range(min = 1, max = MAX_ITEMS))]
    pub num_traces: usize,
    /// Most attempts that the organizer writes between two of its actions;
    /// the number is drawn uniformly from 0 to this. Default 4.
    #[serde(default = "count::<4>")]
    #[schemars(range(min = 1, max = 256))]
    pub max_attempts_organizer: usize,
    /// Most attempts that a worker writes per sub-query; the number is drawn
    /// uniformly from 1 to this. Default 4.
    #[serde(default = "count::<4>")]
    #[schemars(range(min = 1, max = 256))]
    pub max_attempts_worker: usize,
    /// Probability that an attempt is drawn from the true solutions; the
    /// others are drawn blindly, so that the model also learns to reject.
    /// Default 0.3: reinforcement learning finds nothing where attempts
    /// almost never hit.
    #[serde(default = "crate::defaults::hit_rate")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub hit_rate: f64,
    /// Share of the traces whose answer lists what was found and returned;
    /// the others answer with attempts whatever their value. Default 0.5: the
    /// paper's answers need not be right, and the rest is left to learn.
    #[serde(default = "crate::defaults::half")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub correct_answer_rate: f64,
    /// Share of the traces whose agents go on until they have found enough,
    /// up to their most attempts, and then stop; in the others the number of
    /// attempts does not depend on what they find. Default 0.25.
    #[serde(default = "crate::defaults::quarter")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub persistence_rate: f64,
    /// Probability that a worker that found nothing returns its last attempt
    /// instead of nothing. Default 0.1.
    #[serde(default = "crate::defaults::tenth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub wrong_return_rate: f64,
    /// Probability that a sub-query names the operator to try, as in
    /// `3 5 7 = 15 with *`. Default 0: the whole problem is handed over.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub focus_rate: f64,
    /// Share of the traces that ask for another target than their problem:
    /// the value of a random expression over its numbers, never one that is
    /// kept for testing. Default 0. Targets with several solutions are few;
    /// a format that is shown on many more carries over to unseen ones.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub other_target_rate: f64,
    /// Share of those other targets that have one of their last two digits
    /// drawn anew. Default 0. Such a target misses a value by one digit: to
    /// judge it, every digit must be compared. It may be out of reach, so a
    /// high share leaves few hits to learn from.
    #[serde(default = "zero")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub near_target_rate: f64,
    /// Digits to which the teacher pads the values that it computes, as
    /// `{target:03}` does for the target in `prompts.query`. Default 0: none.
    /// With more digits than a token of the vocabulary has, value and target
    /// are spelled, and are compared digit by digit: that carries over to
    /// targets that training never shows.
    #[serde(default = "count::<0>")]
    #[schemars(range(min = 0, max = 18))]
    pub value_width: usize,
    /// Most Forks in a sampled topology. Topologies are drawn uniformly from
    /// the legal Fork/Join sequences of the pool's capacity in which every
    /// worker is joined, the one without Forks included. Default 3.
    #[serde(default = "count::<3>")]
    #[schemars(range(min = 0, max = 64))]
    pub topology_max_forks: usize,
    /// Writer of the traces: `[synth.teacher.<name>]` with its options. Absent
    /// means `solver`, whose options are the keys of `[synth]`.
    #[serde(default = "solver", skip_serializing_if = "is_solver")]
    pub teacher: NamedTable,
}

/// Name of the teacher where the recipe gives none.
const DEFAULT_TEACHER: &str = "solver";

fn solver() -> NamedTable {
    NamedTable::new(DEFAULT_TEACHER)
}

fn is_solver(teacher: &NamedTable) -> bool {
    *teacher == solver()
}
