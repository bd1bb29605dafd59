//! `synth` and `eval` by several ranks: the results of one, and one failure for all.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};

use asyncthink_tests::{Workspace, send, stdout};
use serde_json::Value;

/// Starts a command by a launcher with so many ranks.
fn launched<'a>(num_ranks: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    let launch = ["launch", "--standalone", "--nproc-per-node", num_ranks];
    [&launch[..], &["--"], command].concat()
}

/// What the first rank said; the others say nothing.
fn said_by_first_rank(output: &Output) -> String {
    let line = |line: &str| line.strip_prefix("[rank 0] ").map(str::to_owned);
    let lines: Option<Vec<String>> = stdout(output).lines().map(line).collect();
    lines.expect("lines of the first rank").join("\n") + "\n"
}

/// Every file below a folder with its bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").display().to_string();
        if path.is_dir() {
            let inner = self::files(&path).into_iter();
            files.extend(inner.map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, std::fs::read(&path).expect("a file"));
        }
    }
    files
}

#[test]
fn synth_writes_the_same_files_with_any_number_of_ranks() {
    let workspace = Workspace::new();
    let command = [
        "synth",
        "tiny.toml",
        "--resume",
        "never",
        "--set",
        "synth.num_traces=150",
    ];
    let expected = stdout(&workspace.done(&command));
    let folder = workspace.path().join("run/synth");
    let expected_files = files(&folder);
    assert!(expected_files.len() >= 6, "{:?}", expected_files.keys());
    for num_ranks in ["2", "3"] {
        std::fs::remove_dir_all(&folder).expect("a folder");
        let output = workspace.done(&launched(num_ranks, &command));
        assert_eq!(said_by_first_rank(&output), expected);
        assert!(files(&folder) == expected_files, "{num_ranks} ranks");
    }
    let output = workspace.done(&launched(
        "2",
        &["synth", "tiny.toml", command[4], command[5]],
    ));
    assert!(stdout(&output).contains("kept from before"));
}

#[test]
fn eval_has_the_same_results_with_any_number_of_ranks() {
    let workspace = Workspace::new();
    for stage in ["synth", "sft", "grpo"] {
        workspace.done(&[stage, "tiny.toml"]);
    }
    let folder = workspace.path().join("run/eval");
    let figures = || {
        let text = std::fs::read(folder.join("results.json")).expect("a file");
        let results: Value = serde_json::from_slice(&text).expect("JSON");
        let models = results["models"].as_array().expect("models").iter();
        let figures: Vec<Value> = models.map(|model| model["evaluation"].clone()).collect();
        assert_eq!(figures.len(), 2);
        figures
    };
    let episodes = || {
        let names = ["episodes_after_sft.jsonl", "episodes_after_grpo.jsonl"];
        names.map(|name| std::fs::read_to_string(folder.join(name)).expect("a file"))
    };
    // Two problems: fewer than three ranks.
    for num_problems in ["10", "2"] {
        let set = format!("eval.num_problems={num_problems}");
        let command = ["eval", "tiny.toml", "--set", &set, "--resume", "never"];
        let expected = stdout(&workspace.done(&command));
        let (expected_figures, expected_episodes) = (figures(), episodes());
        for num_ranks in ["2", "3"] {
            std::fs::remove_dir_all(&folder).expect("a folder");
            let output = workspace.done(&launched(num_ranks, &command));
            assert_eq!(said_by_first_rank(&output), expected);
            assert_eq!(figures(), expected_figures, "{num_ranks} ranks");
            assert_eq!(episodes(), expected_episodes, "{num_ranks} ranks");
        }
        // What is known is not measured again, by any rank.
        let output = workspace.done(&launched("2", &command[..4]));
        assert_eq!(said_by_first_rank(&output), expected);
        let progress = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!progress.contains("after SFT"), "{progress}");
    }
}

/// Runs a command as two ranks without a launcher, the second one with other arguments.
fn two_ranks(workspace: &Workspace, first: &[&str], second: &[&str]) -> [Output; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener
        .local_addr()
        .expect("an address")
        .port()
        .to_string();
    drop(listener);
    let start = |rank: &str, args: &[&str]| {
        let mut command = workspace.command(args);
        for (name, value) in [
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", &port),
        ] {
            command.env(name, value);
        }
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    };
    let ranks = [start("0", first), start("1", second)];
    ranks.map(|rank| rank.wait_with_output().expect("the program ends"))
}

/// The second rank refuses its input with `reason` and what follows it; the first one ends with that message.
fn refused_by_both(workspace: &Workspace, outputs: [Output; 2], reason: &str, after: &str) {
    let [first, second] = outputs.map(|output| (output.status.code(), workspace.show(&output)));
    assert_eq!(
        (first.0, second.0),
        (Some(2), Some(2)),
        "{}{}",
        first.1,
        second.1
    );
    assert!(
        second.1.contains(&format!("error: {reason}{after}")),
        "{}",
        second.1
    );
    assert!(
        first.1.contains(&format!("error: rank 1 failed: {reason}")),
        "{}",
        first.1
    );
}

#[test]
fn a_rank_that_fails_ends_all_with_its_message() {
    let workspace = Workspace::new();
    // The first rank finds nothing to measure; there is nothing that another attempt could change.
    let output = workspace.run(&launched("2", &["eval", "tiny.toml"]));
    let text = workspace.show(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("`run` holds no trained model to measure"),
        "{text}"
    );

    workspace.done(&["synth", "tiny.toml"]);
    workspace.done(&["sft", "tiny.toml"]);
    let eval = ["eval", "tiny.toml", "--set", "distributed.timeout_secs=60"];
    let elsewhere = [&eval[..], &["--set", "run_dir=elsewhere"]].concat();
    let reason = "nothing to train on: `elsewhere/synth/test_problems.parquet` is missing or empty";
    refused_by_both(
        &workspace,
        two_ranks(&workspace, &eval, &elsewhere),
        reason,
        "",
    );
    assert!(!workspace.path().join("run/eval/results.json").exists());

    let synth = ["synth", "tiny.toml", "--resume", "never"];
    let other = [&synth[..], &["--set", "seed=2"]].concat();
    let reason = "this rank has another recipe or other files than the first rank";
    refused_by_both(
        &workspace,
        two_ranks(&workspace, &synth, &other),
        reason,
        "\n\nhint: ",
    );
}

#[test]
fn a_signal_stops_an_evaluation_by_several_ranks() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    workspace.done(&["sft", "tiny.toml"]);
    let eval = [
        "eval",
        "tiny.toml",
        "--set",
        "eval.samples_per_problem=10000",
    ];
    let mut child = workspace.spawn(&launched("2", &eval));
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut seen = String::new();
    // Sampling has begun.
    while !seen.contains(" after SFT") {
        seen += &lines.next().expect("a line").expect("text");
    }
    send("-TERM", child.id());
    for line in lines {
        seen += &line.expect("text");
    }
    let status = child.wait().expect("the program ends");
    assert_eq!(status.code(), Some(143), "{seen}");
    assert!(seen.contains("eval: stopped by SIGTERM"), "{seen}");
    assert!(!seen.contains("error: "), "{seen}");
}
