//! `trace` and `grade`: JSON lines in, JSON lines out. What becomes of output that cannot be written.

use std::process::Stdio;

use asyncthink_tests::{Workspace, stdout};
use serde_json::{Value, json};

fn json_lines(values: &[Value]) -> String {
    values.iter().fold(String::new(), |text, value| {
        text + &value.to_string() + "\n"
    })
}

fn traces() -> String {
    let lines = [
        json!({"id": "legal", "capacity": 2,
            "organizer": "a<FORK1>b</FORK1>cc<JOIN1>r</JOIN1>d<ANSWER>7</ANSWER>",
            "workers": [{"sub_query_id": 1, "text": "x<RETURN>r</RETURN>"}]}),
        json!({"id": 2, "capacity": 1, "organizer": "<FORK1>b</FORK1>", "workers": [{"sub_query_id": 1, "text": ""}]}),
        json!({"id": {"any": "json"}, "capacity": 2, "organizer": "<JOIN1>", "workers": []}),
        json!({"id": "no answer", "capacity": 2, "organizer": "hm", "workers": []}),
        json!({"id": "twice", "capacity": 3, "organizer": "<FORK1>a</FORK1><FORK1>a</FORK1>",
            "workers": [{"sub_query_id": 1, "text": ""}, {"sub_query_id": 1, "text": ""}]}),
        json!({"id": "nested", "capacity": 3, "organizer": "<FORK1>a<FORK2>", "workers": []}),
        json!({"id": "wrong injection", "capacity": 2,
            "organizer": "<FORK1>b</FORK1><JOIN1>s</JOIN1><ANSWER>7</ANSWER>",
            "workers": [{"sub_query_id": 1, "text": "<RETURN>r</RETURN>"}]}),
        json!({"id": "no organizer", "capacity": 2, "workers": []}),
    ];
    let mut text = json_lines(&lines);
    text += "\nnot json\n[1, 2]\n{\"id\": 9, \"capacity\": 2, \"organizer\": \"<ANSWER>8</ANSWER>\", \"workers\": []}";
    text
}

#[test]
fn every_line_is_answered_in_order() {
    let workspace = Workspace::new();
    let output = workspace.with_input(&["trace", "-"], traces().as_bytes());
    insta::assert_snapshot!("trace", workspace.show(&output));
    std::fs::write(workspace.path().join("traces.jsonl"), traces()).expect("a file");
    let from_file = workspace.run(&["trace", "traces.jsonl"]);
    assert_eq!(from_file.stdout, output.stdout);
}

#[test]
fn options_of_trace() {
    let workspace = Workspace::new();
    let line = json!({"id": 1, "capacity": 2,
        "organizer": "<FORK-1>b</FORK-1><FORK-2>b</FORK-2><JOIN-1></JOIN-1><ANSWER>7</ANSWER>",
        "workers": [{"sub_query_id": 1, "text": "xx"}, {"sub_query_id": 2, "text": "yyy"}]})
    .to_string();
    let overflow = |args: &[&str]| {
        let output = workspace.with_input(args, line.as_bytes());
        let answer: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        answer["error"].clone()
    };
    assert_eq!(
        overflow(&["trace", "-", "--tag-style", "hyphen"]),
        "pool_overflow"
    );
    let queue = ["trace", "-", "--tag-style", "hyphen", "--overflow", "queue"];
    assert_eq!(overflow(&queue), Value::Null);
}

#[test]
fn the_model_s_tokenizer_counts() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    let line = json!({"id": 1, "capacity": 2,
        "organizer": "<FORK1>3 5 = 15</FORK1>10<JOIN1>3*5</JOIN1><ANSWER>3*5</ANSWER>",
        "workers": [{"sub_query_id": 1, "text": "<RETURN>3*5</RETURN>"}]})
    .to_string();
    let args = ["trace", "-", "--tokenizer", "run/synth/tokenizer"];
    let answer: Value =
        serde_json::from_str(&stdout(&workspace.with_input(&args, line.as_bytes()))).expect("JSON");
    // Tags and numbers are single tokens there: `<FORK1>`, seven of the
    // sub-query, `</FORK1>`, `10`, `<JOIN1>`; then the answer of five.
    assert_eq!(answer["fragments"], json!([11, 5]), "{answer}");
    // The worker's five tokens start after nine and end after fourteen.
    assert_eq!(answer["latency"], json!(14 + 5), "{answer}");
}

#[test]
fn answers_are_graded() {
    let workspace = Workspace::new();
    let problem = json!({"target": 15, "available_numbers": [3, 5, 7, 8, 1, 2, 9], "required": 2});
    let lines = [
        json!({"id": "a", "problem": problem, "answer": "3*5*1 = 15\n7+8; 9+7-1, (("}),
        json!({"id": "b", "problem": {"target": 15, "available_numbers": [3, 5]}, "answer": ""}),
        json!({"id": "c", "problem": {"target": "15"}, "answer": ""}),
        json!({"problem": problem, "answer": "1/0*3"}),
    ];
    let text = json_lines(&lines);
    let output = workspace.with_input(&["grade", "--task", "mcd", "-"], text.as_bytes());
    insta::assert_snapshot!("grade", workspace.show(&output));
}

#[test]
fn bytes_that_are_not_text_are_answered() {
    let workspace = Workspace::new();
    let output = workspace.with_input(&["trace", "-"], b"\xff\xfd\n\x00\n");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output).matches("\"unreadable\"").count(), 2);
}

/// Lines of each command, the fourth of the file broken after its id.
#[test]
fn a_broken_line_is_named_by_its_number_in_the_file() {
    let workspace = Workspace::new();
    let grade =
        r#"{"id": 1, "problem": {"target": 6, "available_numbers": [1, 2, 3]}, "answer": "1+2+3"}"#;
    let trace = r#"{"id": 1, "capacity": 2, "organizer": "<ANSWER>8</ANSWER>", "workers": []}"#;
    for (command, good) in [
        (&["grade", "--task", "mcd", "-"][..], grade),
        (&["trace", "-"], trace),
    ] {
        for mark in ["", "\u{feff}"] {
            let text = format!(
                "{mark}{good}\r\n\n{good}\n{{\"id\":\"c\" \"answer\":1}}\n \t\n{{\"id\": [4]}}\n[]"
            );
            let output = workspace.with_input(command, text.as_bytes());
            let answers = stdout(&output);
            let answers: Vec<&str> = answers.lines().collect();
            assert_eq!(answers.len(), 5, "{}", workspace.show(&output));
            assert!(!answers[0].contains("error\":\"unreadable"), "{answers:?}");
            assert_eq!(
                answers[2],
                r#"{"id":"c","error":"unreadable","message":"expected `,` or `}` at line 4 column 11"}"#
            );
            assert!(
                answers[3].starts_with(r#"{"id":[4],"error""#),
                "{answers:?}"
            );
            assert!(answers[3].contains(" at line 6 column "), "{answers:?}");
            assert!(
                answers[4].contains("not a JSON object at line 7"),
                "{answers:?}"
            );
            assert_eq!(output.status.code(), Some(2));
        }
    }
    // A fault within the problem.
    let text = "\n\n{\"id\": 3, \"problem\": {\"target\": \"6\"}, \"answer\": \"\"}\n";
    let output = workspace.with_input(&["grade", "--task", "mcd", "-"], text.as_bytes());
    assert!(
        stdout(&output).contains(" at line 3 column 35"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn ids_come_back_as_they_were_written() {
    let workspace = Workspace::new();
    let ids = [
        "18446744073709551616",
        "123456789012345678901234567890",
        "1.0",
        "-0.50e+01",
        r#""\u00e9\/""#,
        r#"{ "b" : [1.0, 2] , "a": null }"#,
        "null",
    ];
    let rest = r#""capacity": 2, "organizer": "<ANSWER>8</ANSWER>", "workers""#;
    for id in ids {
        let text = format!("{{\"id\": {id}, {rest}: []}}\n{{\"id\": {id}, {rest}: 0}}\n");
        let answers = stdout(&workspace.with_input(&["trace", "-"], text.as_bytes()));
        let answers: Vec<&str> = answers.lines().collect();
        for answer in &answers {
            assert!(answer.starts_with(&format!("{{\"id\":{id},")), "{answer}");
        }
        assert_eq!(answers.len(), 2);
    }
}

#[test]
fn a_file_that_is_no_text_is_named() {
    let workspace = Workspace::new();
    std::fs::create_dir(workspace.path().join("folder")).expect("a folder");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let utf16: Vec<u8> = "\u{feff}{}\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (name, bytes) in [
        ("gzip", b"\x1f\x8b\x08\0\0".as_slice()),
        ("utf16", &utf16),
        ("pointer", pointer.as_bytes()),
        ("parquet", b"PAR1\x15\x04"),
    ] {
        std::fs::write(workspace.path().join(name), bytes).expect("a file");
    }
    for (name, message) in [
        ("folder", "is a folder, not a file"),
        ("gzip", "is compressed (gzip)"),
        ("utf16", "is text in UTF-16, not UTF-8"),
        ("pointer", "is a Git LFS pointer in place of the file"),
        ("parquet", "is a Parquet file"),
    ] {
        let output = workspace.run(&["grade", "--task", "mcd", name]);
        let shown = workspace.show(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(
            shown.contains(&format!("error: `{name}` {message}")),
            "{shown}"
        );
        assert!(shown.contains("hint: "), "{shown}");
        if name != "parquet" {
            // The same as a recipe, and as the problems of one.
            let recipe = workspace.run(&["synth", name]);
            let task =
                format!("task={{ mcd = {{ train_file = {name:?}, test_file = {name:?} }} }}");
            let problems = workspace.run(&["synth", "tiny.toml", "--set", &task]);
            for output in [recipe, problems] {
                let shown = workspace.show(&output);
                assert_eq!(output.status.code(), Some(2), "{shown}");
                assert!(
                    shown.contains(message) && shown.contains("hint: "),
                    "{shown}"
                );
            }
        }
    }
}

#[test]
fn a_full_device_is_a_failure_alone_and_under_launch() {
    let workspace = Workspace::new();
    for args in [
        &["--help"][..],
        &["--version"],
        &["schema"],
        &["completions", "bash"],
        &["synth", "tiny.toml", "--dry-run"],
        &["launch", "--", "schema"],
        &["launch", "--nproc-per-node", "2", "--", "schema"],
        &["launch", "--", "synth", "tiny.toml", "--dry-run"],
        &["launch", "--", "schema", "--help"],
    ] {
        let full = std::fs::File::create("/dev/full").expect("a device");
        let mut command = workspace.command(args);
        let child = command.stdout(full).stderr(Stdio::piped()).spawn();
        let output = child.expect("the program starts").wait_with_output();
        let shown = workspace.show(&output.expect("the program ends"));
        assert!(shown.starts_with("exit code: Some(1)"), "{args:?}: {shown}");
        assert!(shown.contains("error: No space left on device"), "{shown}");
    }
}

#[test]
fn a_closed_pipe_is_success() {
    let workspace = Workspace::new();
    let line = json!({"id": 9, "capacity": 2, "organizer": "<ANSWER>8</ANSWER>", "workers": []});
    std::fs::write(
        workspace.path().join("many.jsonl"),
        format!("{line}\n").repeat(50_000),
    )
    .expect("a file");
    for args in [
        &["trace", "many.jsonl"][..],
        &["launch", "--", "trace", "many.jsonl"],
    ] {
        let mut child = workspace.spawn(args);
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the program ends");
        assert!(output.status.success(), "{}", workspace.show(&output));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("error"), "{said}");
        assert!(said.is_empty() || args[0] == "launch", "{said}");
    }
}
