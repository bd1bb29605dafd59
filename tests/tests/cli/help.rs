//! The command line is frozen: a new option is a change of this snapshot.

use asyncthink_tests::{Workspace, stdout};

const COMMANDS: [&str; 13] = [
    "synth",
    "sft",
    "grpo",
    "eval",
    "launch",
    "think",
    "trace",
    "grade",
    "score",
    "bench",
    "schema",
    "doctor",
    "completions",
];

#[test]
fn help_of_every_command() {
    let workspace = Workspace::new();
    let mut text = stdout(&workspace.done(&["--help"]));
    for command in COMMANDS {
        let help = stdout(&workspace.done(&[command, "--help"]));
        text = format!("{text}\n===== {command}\n{help}");
        if command == "bench" {
            let help = stdout(&workspace.done(&[command, "rollout", "--help"]));
            text = format!("{text}\n===== {command} rollout\n{help}");
        }
    }
    insta::assert_snapshot!("help", text);
}

#[test]
fn no_command_and_a_wrong_command_are_input_errors() {
    let workspace = Workspace::new();
    assert_eq!(workspace.run(&[]).status.code(), Some(2));
    let output = workspace.run(&["grpoo"]);
    insta::assert_snapshot!("wrong_command", workspace.show(&output));
}

#[test]
fn completions_and_schema_are_written() {
    let workspace = Workspace::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&workspace.done(&["completions", shell]));
        assert!(script.contains("grpo"), "{shell}");
    }
    let schema = stdout(&workspace.done(&["schema"]));
    let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
    assert_eq!(schema["properties"]["seed"]["default"], 1);
}

#[test]
fn doctor_names_libtorch_and_the_device() {
    let text = stdout(&Workspace::new().done(&["doctor"]));
    assert!(text.contains("libtorch_cpu.so"), "{text}");
    assert!(text.contains("device `auto`"), "{text}");
}
