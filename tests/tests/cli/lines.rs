//! `trace` and `grade`: JSON lines in, JSON lines out.

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
    let output = workspace.with_input(&["trace", "-"], b"\xff\xfe\n\x00\n");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output).matches("\"unreadable\"").count(), 2);
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
    let mut child = workspace.spawn(&["trace", "many.jsonl"]);
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert!(output.status.success(), "{}", workspace.show(&output));
    assert!(output.stderr.is_empty(), "{}", workspace.show(&output));
}
