//! `score`: log-probabilities of given tokens.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use asyncthink_tests::{Workspace, stdout};

use crate::model_folder;

/// Reference log-probs by `transformers`: `scripts/golden/family_logits.py`.
const GOLDEN: &str = include_str!("../../golden/families.json");

#[derive(Deserialize)]
struct Golden {
    ids: Vec<i64>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    config: Map<String, Value>,
    logprobs: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(GOLDEN).expect("the golden file")
}

/// A workspace with the folder `model`, of a case of the golden file.
fn with_model(case: &Case) -> Workspace {
    let workspace = Workspace::new();
    let dir = workspace.path().join("model");
    std::fs::create_dir(&dir).expect("a folder");
    model_folder::write_folder(&dir, &case.config, model_folder::WIDTH, 1);
    workspace
}

fn qwen3() -> (Vec<i64>, Workspace) {
    let golden = golden();
    let workspace = with_model(&golden.cases["qwen3_plain"]);
    (golden.ids, workspace)
}

/// The log-probabilities of each line of the output.
fn logprobs(text: &str) -> Vec<Vec<f64>> {
    text.lines()
        .map(|line| {
            let answer: Value = serde_json::from_str(line).expect("JSON");
            let values = answer["logprobs"].as_array().expect(line);
            values
                .iter()
                .map(|value| value.as_f64().expect(line))
                .collect()
        })
        .collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

#[test]
fn scores_are_those_of_transformers() {
    let golden = golden();
    for (name, case) in &golden.cases {
        let workspace = with_model(case);
        let line = json!({"id": name, "input_ids": golden.ids}).to_string();
        let args = ["score", "--model", "model", "-"];
        let output = workspace.with_input(&args, line.as_bytes());
        assert!(output.status.success(), "{}", workspace.show(&output));
        let text = stdout(&output);
        assert!(
            text.starts_with(&format!(r#"{{"id":"{name}","logprobs":[-"#)),
            "{text}"
        );
        let off = largest_difference(&logprobs(&text)[0], &case.logprobs);
        assert!(off < 1e-4, "{name}: off by {off}");
        // Weights of 8 bits of mantissa are other weights: close, and no more.
        let output =
            workspace.with_input(&[&args[..], &["--dtype", "bf16"]].concat(), line.as_bytes());
        let off = largest_difference(&logprobs(&stdout(&output))[0], &case.logprobs);
        assert!(off > 1e-4 && off < 1.5, "{name}: off by {off} in bf16");
    }
}

#[test]
fn budget_and_threads_change_nothing() {
    let (ids, workspace) = qwen3();
    // More lines than a window of small budgets has, of every length.
    let lines: String = (0..90)
        .map(|index| {
            let ids: Vec<i64> = ids
                .iter()
                .cycle()
                .skip(index)
                .take(1 + index % 37)
                .copied()
                .collect();
            json!({"id": index, "input_ids": ids}).to_string() + "\n"
        })
        .collect();
    std::fs::write(workspace.path().join("ids.jsonl"), lines).expect("a file");
    let score = |args: &[&str]| {
        let args = [&["score", "--model", "model", "ids.jsonl"], args].concat();
        stdout(&workspace.done(&args))
    };
    let expected = score(&["--batch-tokens", "1", "--num-threads", "1"]);
    for (index, line) in expected.lines().enumerate() {
        assert!(line.starts_with(&format!("{{\"id\":{index},")), "{line}");
    }
    let expected = logprobs(&expected);
    assert_eq!(expected[0], Vec::<f64>::new());
    for args in [
        &["--batch-tokens", "5", "--num-threads", "2"][..],
        &["--batch-tokens", "64", "--num-threads", "3"],
        &["--batch-tokens", "4294967295"],
        &[],
    ] {
        let scores = logprobs(&score(args));
        assert_eq!(scores.len(), expected.len());
        for (ours, expected) in scores.iter().zip(&expected) {
            let off = largest_difference(ours, expected);
            // Values of this model reach -9, where f32 has steps of 1e-6.
            assert!(off <= 4e-6, "{args:?}: {off}");
        }
    }
}

#[test]
fn lines_that_cannot_be_read_are_answered_among_the_others() {
    let (_, workspace) = qwen3();
    let too_long = vec![1; 129];
    let lines = [
        json!({"id": "one", "input_ids": [5]}).to_string(),
        json!({"id": "empty", "input_ids": []}).to_string(),
        json!({"id": "outside", "input_ids": [1, 2, 37]}).to_string(),
        json!({"id": "negative", "input_ids": [-1]}).to_string(),
        json!({"id": "too long", "input_ids": too_long}).to_string(),
        json!({"id": "a float", "input_ids": [1.5]}).to_string(),
        json!({"id": ["missing"], "ids": [1]}).to_string(),
        "[1, 2]".to_owned(),
        "not json".to_owned(),
        String::new(),
        json!({"input_ids": [7]}).to_string(),
    ];
    let output = workspace.with_input(
        &["score", "--model", "model", "-"],
        lines.join("\n").as_bytes(),
    );
    insta::assert_snapshot!("unreadable", workspace.show(&output));
}

#[test]
fn what_is_wrong_is_said() {
    let (_, workspace) = qwen3();
    std::fs::write(workspace.path().join("ids.jsonl"), "").expect("a file");
    std::fs::create_dir(workspace.path().join("empty")).expect("a folder");
    let config = workspace.path().join("model/config.json");
    std::fs::create_dir(workspace.path().join("no_weights")).expect("a folder");
    std::fs::copy(config, workspace.path().join("no_weights/config.json")).expect("a copy");
    for (name, args) in [
        ("no_folder", ["none", "ids.jsonl", "--verbose"].as_slice()),
        ("no_config", &["empty", "ids.jsonl"]),
        ("no_weights", &["no_weights", "ids.jsonl"]),
        ("no_lines", &["model", "none.jsonl"]),
        ("bad_device", &["model", "ids.jsonl", "--device", "gpu"]),
        ("bad_dtype", &["model", "ids.jsonl", "--dtype", "f16"]),
        ("bad_budget", &["model", "ids.jsonl", "--batch-tokens", "0"]),
    ] {
        let output = workspace.run(&[&["score", "--model"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{name}");
        insta::assert_snapshot!(name, workspace.show(&output));
    }
}

#[test]
fn the_last_line_of_verbose_is_for_programs() {
    let (ids, workspace) = qwen3();
    let line = json!({"id": 1, "input_ids": ids}).to_string();
    let args = ["score", "--model", "model", "-"];
    let quiet = workspace.with_input(&args, line.as_bytes());
    assert!(quiet.stderr.is_empty(), "{}", workspace.show(&quiet));
    let output = workspace.with_input(&[&args[..], &["--verbose"]].concat(), line.as_bytes());
    assert_eq!(output.stdout, quiet.stdout);
    let report = String::from_utf8(output.stderr).expect("text");
    let fields: BTreeMap<&str, &str> = report
        .trim()
        .strip_prefix("score: ")
        .expect("the report")
        .split(' ')
        .filter_map(|field| field.split_once('='))
        .collect();
    assert_eq!((fields["sequences"], fields["tokens"]), ("1", "40"));
    for name in [
        "seconds",
        "tokens_per_second",
        "load_seconds",
        "load_peak_mib",
    ] {
        let value: f64 = fields[name].parse().expect(name);
        assert!(value.is_finite() && value > 0.0, "{report}");
    }
}

#[test]
fn a_model_that_is_not_finite_fails() {
    let (_, workspace) = qwen3();
    let path = workspace.path().join("model/model.safetensors");
    let mut bytes = std::fs::read(&path).expect("the weights");
    // The last value is one of the final norm's.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("a file");
    let line = json!({"id": "a", "input_ids": [1, 2]}).to_string();
    let output = workspace.with_input(&["score", "--model", "model", "-"], line.as_bytes());
    insta::assert_snapshot!("not_finite", workspace.show(&output));
}
