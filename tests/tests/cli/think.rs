//! `think`: one episode on a model that knows a single trace by heart.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use asyncthink_tests::{Workspace, send, stdout};
use serde_json::{Value, json};

const RECIPE: &str = include_str!("../../by_heart.toml");
const PROBLEM: &str = r#"{"index": 0, "target": 15, "available_numbers": [3, 5, 7, 8, 1]}"#;
const QUERY: &str = "3 5 7 8 1 = 15";

/// The recipe, and its one problem.
fn workspace(num_steps: u32) -> Workspace {
    let recipe = RECIPE.replace("num_steps = 200", &format!("num_steps = {num_steps}"));
    let workspace = Workspace::with_recipe(&recipe);
    std::fs::write(workspace.path().join("problems.jsonl"), PROBLEM).expect("a file");
    workspace.done(&["synth", "tiny.toml"]);
    workspace
}

/// With a model that writes the trace word by word at temperature 0.
fn trained() -> Workspace {
    let workspace = workspace(200);
    workspace.done(&["sft", "tiny.toml"]);
    workspace
}

fn think<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["think", "--model", "run", "--device", "cpu"][..], more].concat()
}

/// What stands in a model's `config.json`.
fn edit_json(file: &Path, key: &str, value: Value) {
    let text = std::fs::read_to_string(file).expect("a file");
    let mut json: Value = serde_json::from_str(&text).expect("JSON");
    json[key] = value;
    std::fs::write(file, json.to_string()).expect("a file");
}

#[test]
fn an_episode_is_told_line_by_line() {
    let workspace = trained();
    let output = workspace.done(&think(&["--temperature", "0", QUERY]));
    insta::assert_snapshot!("think", stdout(&output));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.starts_with("think: `"), "{stderr}");
    assert!(
        stderr.contains("/sft/checkpoints/step_200`, capacity 2, temperature 0, seed 1\n"),
        "{stderr}"
    );
    assert!(stderr.ends_with(" tokens/s\n"), "{stderr}");

    // The same from standard input, and by the checkpoint's own folder.
    let model = "run/sft/checkpoints/latest";
    let args = ["think", "--model", model, "--temperature", "0", "-"];
    let again = workspace.with_input(&args, format!("{QUERY}\n").as_bytes());
    assert_eq!(stdout(&again), stdout(&output));
}

#[test]
fn the_line_of_json_is_a_trace_with_the_same_figures() {
    let workspace = trained();
    let line = stdout(&workspace.done(&think(&["--temperature", "0", "--json", QUERY])));
    let said: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(line.lines().count(), 1);
    assert_eq!(said["query"], QUERY);
    assert_eq!(said["valid"], true, "{said}");
    assert_eq!((&said["forks"], &said["joins"]), (&json!(1), &json!(1)));
    check_by_trace(&workspace, &line, &said);

    // An episode that is cut, as it is told and as a trace.
    let cut = ["--temperature", "0", "--organizer-max-tokens", "3", QUERY];
    let output = stdout(&workspace.done(&think(&cut)));
    assert!(
        output.ends_with(
            "\nformat error * no_answer: the organizer ended without a complete answer\n0 forks, 0 joins, 3 tokens decoded\n"
        ),
        "{output}"
    );
    let line = stdout(&workspace.done(&think(&[&cut[..], &["--json"]].concat())));
    let said: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(said["error"], "no_answer", "{said}");
    assert_eq!(said["latency"], Value::Null);
    check_by_trace(&workspace, &line, &said);
}

/// `trace` must say of the line what the line says of itself; the figures of
/// an invalid trace are null there.
fn check_by_trace(workspace: &Workspace, line: &str, said: &Value) {
    let args = ["trace", "-", "--tokenizer", "run/sft/checkpoints/latest"];
    let answer = stdout(&workspace.with_input(&args, line.as_bytes()));
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    for (key, value) in answer.as_object().expect("an object") {
        if !value.is_null() || said["valid"] == true {
            assert_eq!(&said[key], value, "{key}: {line}");
        }
    }
    assert_eq!(answer["valid"], said["valid"]);
}

#[test]
fn the_seed_and_the_options_decide() {
    let workspace = workspace(20);
    workspace.done(&["sft", "tiny.toml"]);
    let run = |more: &[&str]| stdout(&workspace.done(&think(&[more, &[QUERY, "--json"]].concat())));
    let seeds = ["1", "2", "3", "4"];
    let first = seeds.map(|seed| run(&["--temperature", "1.5", "--seed", seed]));
    let second = seeds.map(|seed| run(&["--temperature", "1.5", "--seed", seed]));
    assert_eq!(first, second);
    assert!(first[1..].iter().any(|line| *line != first[0]));
    let more = ["--capacity", "5", "--organizer-max-tokens", "2"];
    let line: Value = serde_json::from_str(&run(&more)).expect("JSON");
    assert_eq!(line["capacity"], 5);
    assert!(line["decoded_tokens"].as_u64() <= Some(2), "{line}");
}

#[test]
fn a_model_without_a_card_is_prompted_all_the_same() {
    let workspace = workspace(1);
    workspace.done(&["sft", "tiny.toml"]);
    let card = workspace
        .path()
        .join("run/sft/checkpoints/step_1/asyncthink.json");
    std::fs::remove_file(card).expect("the card");
    let args = think(&["--organizer-max-tokens", "8", "--json", QUERY]);
    let output = workspace.done(&args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains(", capacity 4, "), "{stderr}");
    assert!(
        stderr.contains("\nnote: the model has no `asyncthink.json`"),
        "{stderr}"
    );
}

#[test]
fn a_signal_ends_it() {
    let workspace = workspace(1);
    workspace.done(&[
        "sft",
        "tiny.toml",
        "--set",
        "sft.optimizer.learning_rate=1e-9",
    ]);
    let checkpoint = workspace.path().join("run/sft/checkpoints/step_1");
    // Random weights repeat their last token for ever, and have room for it.
    edit_json(
        &checkpoint.join("config.json"),
        "max_position_embeddings",
        json!(1_000_000),
    );
    let endless = ["--temperature", "0", "--organizer-max-tokens", "1000000"];
    let mut child = workspace.spawn(&think(&[&endless[..], &[QUERY]].concat()));
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut text = String::new();
    lines.read_line(&mut text).expect("a line");
    assert!(text.starts_with("organizer | "), "{text}");
    send("-INT", child.id());
    lines.read_to_string(&mut text).expect("text");
    assert!(text.ends_with('\n') && !text.contains("format error"));
    let output = child.wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.ends_with("\nthink: stopped by SIGINT\n"), "{stderr}");
}

#[test]
fn wrong_input_is_found_before_the_weights_are_read() {
    let workspace = workspace(1);
    let folder = workspace.path().join("model");
    std::fs::create_dir(&folder).expect("a folder");
    insta::assert_snapshot!(
        "no_such_folder",
        workspace.refused(&["think", "--model", "none", QUERY])
    );
    insta::assert_snapshot!(
        "not_a_model",
        workspace.refused(&["think", "--model", "model", QUERY])
    );
    let args = ["think", "--model", "model"];
    let with = |more: &[&'static str]| [&args[..], more].concat();
    insta::assert_snapshot!("empty_query", workspace.refused(&with(&[" \n"])));

    // Everything but the weights.
    let config = json!({"model_type": "qwen3", "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 16});
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a file");
    insta::assert_snapshot!("no_tokenizer", workspace.refused(&with(&[QUERY])));
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let from = workspace.path().join("run/synth/tokenizer").join(file);
        std::fs::copy(from, folder.join(file)).expect("a copy");
    }
    let card = json!({"format": 1, "prompts": {"organizer": "main {query}\n", "worker": "sub {sub_query}", "query": ""},
        "tag_style": "plain", "capacity": 2, "overflow": "error", "worker_max_tokens": 9, "organizer_max_tokens": 9});
    let card_file = folder.join("asyncthink.json");
    std::fs::write(&card_file, card.to_string()).expect("a file");
    insta::assert_snapshot!("prompt_too_long", workspace.refused(&with(&[QUERY])));
    edit_json(&card_file, "capacity", json!(0));
    insta::assert_snapshot!("broken_card", workspace.refused(&with(&[QUERY])));
}

#[test]
fn wrong_options_are_refused() {
    let workspace = Workspace::new();
    let mut shown = String::new();
    for (option, value) in [
        ("--device", "gpu"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--capacity", "0"),
        ("--worker-max-tokens", "0"),
    ] {
        let output = workspace.run(&["think", "--model", "run", option, value, QUERY]);
        assert_eq!(output.status.code(), Some(2));
        shown += &workspace.show(&output);
    }
    insta::assert_snapshot!("wrong_options", shown);
}
