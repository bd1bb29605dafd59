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

/// Every check on the CPU, each stage included.
#[test]
fn doctor_checks_what_the_device_computes() {
    let text =
        stdout(&Workspace::new().done(&["doctor", "--self-test", "--device", "cpu", "--json"]));
    let checks: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let names: Vec<&str> = checks
        .iter()
        .filter_map(|check| check["check"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "sampler against trainer, f32",
            "sampler against trainer, bf16",
            "collectives, gloo of one rank",
            "stage synth",
            "stage sft",
            "stage grpo",
            "stage eval",
        ]
    );
    assert!(checks.iter().all(|check| check["passed"] == true), "{text}");
}

#[test]
fn doctor_names_libtorch_and_the_device() {
    let text = stdout(&Workspace::new().done(&["doctor"]));
    assert!(text.contains("libtorch_cpu.so"), "{text}");
    assert!(text.contains("device `auto`"), "{text}");
}
