//! The files of `data/`, as a user would use them.

use std::path::{Path, PathBuf};

use asyncthink_tests::{Workspace, stdout};

fn data(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    let path = root.canonicalize().expect("the data folder").join(name);
    assert!(path.is_file(), "{}", path.display());
    path
}

#[test]
fn traces_give_the_expected_output() {
    let workspace = Workspace::new();
    for (name, exit_code) in [
        ("valid.jsonl", 0),
        ("errors.jsonl", 0),
        ("unreadable.jsonl", 2),
    ] {
        let file = data(&format!("traces/{name}"));
        let output = workspace.run(&["trace", &file.display().to_string()]);
        let shown = workspace.show(&output);
        assert_eq!(output.status.code(), Some(exit_code), "{shown}");
        let expected = std::fs::read_to_string(data(&format!("traces/expected/{name}")));
        assert_eq!(stdout(&output), expected.expect("text"), "{name}");
    }
}

#[test]
fn the_sample_of_countdown_problems_is_trained_on() {
    let workspace = Workspace::new();
    let file = data("mcd/sample.jsonl");
    let task = format!("task={{ mcd = {{ train_file = {file:?}, test_file = {file:?} }} }}");
    let sets = [
        &task,
        "protocol.worker_max_tokens=400",
        "protocol.organizer_max_tokens=400",
        "model.init.max_position_embeddings=2048",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let stage = |name| [&[name, "tiny.toml"], &sets[..]].concat();
    let output = workspace.done(&stage("synth"));
    assert!(
        stdout(&output).contains("64"),
        "{}",
        workspace.show(&output)
    );
    workspace.done(&stage("sft"));
}
