//! This program as several ranks.

use asyncthink_tests::{Workspace, stdout};

#[test]
fn ranks_run_this_program_and_their_lines_stay_whole() {
    let workspace = Workspace::new();
    let options = ["launch", "--standalone", "--nproc_per_node", "2"];
    let output = workspace.done(&[&options[..], &["--", "schema"]].concat());
    let text = stdout(&output);
    for rank in 0..2 {
        let prefix = format!("[rank {rank}] ");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        let schema = lines.collect::<Vec<_>>().join("\n");
        let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
        assert_eq!(schema["properties"]["seed"]["default"], 1);
    }
}

#[test]
fn ranks_that_find_their_input_wrong_are_not_started_again() {
    let workspace = Workspace::new();
    let options = ["launch", "--nproc-per-node", "2", "--max-restarts", "3"];
    let output = workspace.run(&[&options[..], &["--", "grpo", "missing.toml"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(!text.contains("restart"), "{text}");
    // The root cause is the last thing said, in the words of the rank.
    let (_, last) = text.rsplit_once("\nerror: rank ").expect("a root cause");
    assert!(
        last.contains("ended with exit code 2\n  Caused by: "),
        "{text}"
    );
    assert!(last.contains("missing.toml"), "{text}");
}

#[test]
fn a_wrong_command_is_said_once() {
    let workspace = Workspace::new();
    let show = |args: &[&str]| workspace.show(&workspace.run(args));
    insta::assert_snapshot!(
        "launch_no_command",
        show(&["launch", "--nproc-per-node", "2"])
    );
    insta::assert_snapshot!("launch_wrong_command", show(&["launch", "--", "grpoo"]));
    insta::assert_snapshot!(
        "launch_itself",
        show(&["launch", "--", "launch", "--", "schema"])
    );
    let help = workspace.done(&["launch", "--nproc-per-node", "2", "--", "trace", "--help"]);
    assert!(stdout(&help).starts_with("Check traces"));
}

#[test]
fn wrong_options_name_a_way_out() {
    let workspace = Workspace::new();
    let mut text = String::new();
    for options in [
        &["--nproc-per-node", "0"][..],
        &["--nnodes", "1:4"],
        &["--nnodes", "2"],
        &[
            "--standalone",
            "--nnodes",
            "2",
            "--rdzv-endpoint",
            "node0:1",
        ],
        &["--tee", "1:3"],
        &["--redirects", "4"],
        &["--rdzv-id", "a/b"],
    ] {
        let args = [&["launch"], options, &["--", "schema"]].concat();
        text = format!(
            "{text}$ {}\n{}\n",
            args.join(" "),
            workspace.show(&workspace.run(&args))
        );
    }
    insta::assert_snapshot!("launch_wrong_options", text);
}

#[test]
fn a_restarted_rank_goes_on_from_the_attempt_before() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    workspace.done(&["sft", "tiny.toml"]);
    let attempt = |resume: &str, restart_count: &str| {
        let output = workspace
            .command(&["sft", "tiny.toml", "--resume", resume])
            .envs([("RANK", "0"), ("LOCAL_RANK", "0")])
            .envs([("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1")])
            .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29999")])
            .env("TORCHELASTIC_RESTART_COUNT", restart_count)
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{}", workspace.show(&output));
    };
    let aside = |number: u32| workspace.path().join(format!("run/sft.old-{number}"));
    attempt("never", "0");
    assert!(aside(1).is_dir());
    attempt("never", "1");
    assert!(!aside(2).exists());
    // The checkpoint that a launch began at may be gone by then.
    attempt("run/sft/checkpoints/step_10", "0");
    attempt("run/gone", "1");
    assert!(!aside(2).exists());
}
