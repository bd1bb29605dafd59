//! The sample of countdown problems that ships with the project: made by the generator, verified by grader and solver.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use asyncthink_tasks::mcd::{
    GeneratorConfig, Row, Rules, SolveOptions, SubsetOrder, generate, load_rows, solve_with,
};

/// Problems of the size of the public data set, of which the sample takes those to test on.
const CONFIG: GeneratorConfig = GeneratorConfig {
    num_numbers: 12,
    number_range: (1, 100),
    target_range: (100, 1000),
    rules: Rules {
        min_numbers: 3,
        max_numbers: 6,
    },
    required: 4,
    num_train: 0,
    num_validation: 0,
    num_test: 64,
    validation_target_fraction: 0.1,
    test_target_fraction: 0.1,
    seed: 1,
};

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/mcd/sample.jsonl")
}

/// The rows as the generator makes them, each with four solutions from different parts of its pool.
fn rows() -> Vec<Row> {
    let problems = generate(&CONFIG).expect("problems").test;
    let row = |(index, problem): (u32, asyncthink_tasks::mcd::Problem)| {
        let options = SolveOptions {
            limit: CONFIG.required,
            max_per_subset: 1,
            order: SubsetOrder::Shuffled {
                seed: u64::from(index),
            },
            ..SolveOptions::default()
        };
        let solutions = solve_with(&problem, &options).solutions;
        Row {
            index: i64::from(index),
            target: problem.target,
            available_numbers: problem.available_numbers,
            solutions: solutions
                .into_iter()
                .map(|solution| solution.text)
                .collect(),
        }
    };
    (0..).zip(problems).map(row).collect()
}

/// `UPDATE_DATA=1` writes the file anew.
#[test]
#[ignore = "takes seconds; `cargo test --release -p asyncthink-tasks --test sample -- --ignored`"]
fn the_sample_is_made_by_the_generator() {
    let mut text = String::new();
    for row in rows() {
        let line = serde_json::to_string(&row).expect("JSON");
        writeln!(text, "{line}").expect("text");
    }
    if std::env::var_os("UPDATE_DATA").is_some() {
        std::fs::write(file(), &text).expect("the file is written");
    }
    let written = std::fs::read_to_string(file()).expect("the sample");
    assert!(written == text, "run with `UPDATE_DATA=1` to write it anew");
}

#[test]
fn every_row_is_verified() {
    let text = std::fs::read(file()).expect("the sample");
    let rows = load_rows(text.as_slice()).expect("rows");
    assert_eq!(rows.len(), CONFIG.num_test);
    for (index, row) in (0..).zip(&rows) {
        assert_eq!(row.index, index);
        assert_eq!(row.available_numbers.len(), CONFIG.num_numbers, "{row:?}");
        assert_eq!(row.solutions.len(), CONFIG.required, "{row:?}");
        row.verify(CONFIG.rules)
            .unwrap_or_else(|error| panic!("{error}"));
        let problem = row
            .problem(CONFIG.required, CONFIG.rules)
            .expect("a problem");
        let options = SolveOptions {
            limit: CONFIG.required,
            ..SolveOptions::default()
        };
        assert_eq!(
            solve_with(&problem, &options).solutions.len(),
            CONFIG.required
        );
    }
}
