//! The recipe that tests share, and overrides for tests that need other values.
//!
//! Tests of other crates include this file by its path.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test takes what it needs, and some include this file"
)]

/// Recipe of a whole pipeline, but for evaluation, that runs in seconds.
pub const TINY: &str = include_str!("../tiny.toml");

/// Section of an evaluation, to be put after [`TINY`].
pub const EVAL: &str = "\n[eval]\nnum_problems = 10\n";

/// Overrides for tests that train: episodes of four small numbers, and traces that a small model learns in few steps.
pub const TRAINING: [&str; 6] = [
    "device=cpu",
    "num_threads=2",
    "task.mcd={ num_numbers = 4, number_range = [1, 8], target_range = [2, 20], numbers_per_solution = [2, 2], \
     required_solutions = 2, num_train_problems = 8, num_test_problems = 2, test_target_fraction = 0.2 }",
    "protocol={ capacity = 2, worker_max_tokens = 60, organizer_max_tokens = 80, max_forks = 2, \
     organizer_total_tokens = 160 }",
    "prompts={ organizer = \"main {query}\\n\", worker = \"sub {sub_query}\\n\", query = \"{numbers} = {target}\" }",
    "synth={ num_traces = 60, max_attempts_organizer = 2, max_attempts_worker = 2, topology_max_forks = 2 }",
];

/// The part of [`TINY`] before a section, for tests of which later sections must not be part.
///
/// # Panics
/// Panics if there is no such section.
pub fn before(section: &str) -> &'static str {
    let parts = TINY.split_once(&format!("\n[{section}]"));
    parts.expect("a section of the recipe").0
}

/// Overrides in the form that [`Recipe::parse`] takes, groups in order.
///
/// [`Recipe::parse`]: https://docs.rs/asyncthink-recipe
pub fn sets(groups: &[&[&str]]) -> Vec<String> {
    let all = groups.iter().copied().flatten();
    all.map(ToString::to_string).collect()
}
