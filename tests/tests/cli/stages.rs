//! The stages of a tiny recipe, from problems to a table.

use asyncthink_tests::{Workspace, num_lines, send, stdout, wait_for_lines};

#[test]
fn the_pipeline_runs_and_its_second_call_reuses_everything() {
    let workspace = Workspace::new();
    let stages = ["synth", "sft", "grpo", "eval"];
    let first: Vec<_> = stages
        .map(|stage| stdout(&workspace.done(&[stage, "tiny.toml"])))
        .into();
    assert!(
        first[3].contains("after SFT") && first[3].contains("after GRPO"),
        "{}",
        first[3]
    );
    assert!(first[3].contains("run/eval/results.json"), "{}", first[3]);

    let changed = |file: &str| {
        std::fs::metadata(workspace.path().join(file))
            .and_then(|file| file.modified())
            .expect("a file")
    };
    let files = [
        "run/synth/pairs.parquet",
        "run/sft/checkpoints/step_10/model.safetensors",
        "run/grpo/checkpoints/step_4/model.safetensors",
    ];
    let before = files.map(changed);
    for (stage, first) in stages.into_iter().zip(&first) {
        let second = stdout(&workspace.done(&[stage, "tiny.toml"]));
        assert_eq!(second.replace(" (kept from before)", ""), *first);
    }
    assert_eq!(files.map(changed), before);

    let output = workspace.done(&["synth", "tiny.toml", "--resume", "never"]);
    assert!(!stdout(&output).contains("kept from before"));
}

#[test]
fn a_dry_run_writes_the_resolved_recipe_and_starts_nothing() {
    let workspace = Workspace::new();
    let args = [
        "grpo",
        "tiny.toml",
        "--dry-run",
        "--set",
        "grpo.group_size=6",
    ];
    let output = workspace.done(&args);
    insta::assert_snapshot!("dry_run", workspace.show(&output));
    let written: Vec<_> = std::fs::read_dir(workspace.path().join("run"))
        .expect("the run's folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(written, ["recipe.toml"]);

    let resolved = workspace.path().join("run/recipe.toml");
    std::fs::copy(resolved, workspace.path().join("again.toml")).expect("a copy");
    assert_eq!(
        stdout(&workspace.done(&["grpo", "again.toml", "--dry-run"])),
        stdout(&output)
    );
}

#[test]
fn a_signal_saves_and_the_same_command_goes_on() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    let sft = ["sft", "tiny.toml", "--set", "sft.num_steps=100000"];
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let metrics = workspace.path().join("run/sft/metrics.jsonl");
        let before = num_lines(&metrics);
        let child = workspace.spawn(&sft);
        wait_for_lines(&metrics, before);
        send(signal, child.id());
        let output = child.wait_with_output().expect("the program ends");
        let shown = workspace.show(&output);
        assert_eq!(output.status.code(), Some(code), "{shown}");
        assert!(
            shown.contains("saved in `run/sft/checkpoints/step_"),
            "{shown}"
        );
        if signal == "-TERM" {
            assert!(shown.contains("going on from"), "{shown}");
        }
    }
}

#[test]
fn settings_are_chosen_on_problems_that_are_not_tested_on() {
    let workspace = Workspace::new();
    let made = "task.mcd.num_validation_problems=12";
    workspace.done(&["synth", "tiny.toml", "--set", made]);
    workspace.done(&["sft", "tiny.toml", "--set", made]);
    let eval = |more: &[&str]| {
        let args = [&["eval", "tiny.toml", "--set", made], more].concat();
        stdout(&workspace.done(&args))
    };
    let shown = eval(&["--set", "eval.split=validation"]);
    assert!(shown.contains("10 validation problems x"), "{shown}");
    assert!(
        shown.contains("run/eval/results_validation.json"),
        "{shown}"
    );
    let shown = eval(&[]);
    assert!(shown.contains("10 test problems x"), "{shown}");
    for file in ["results_validation.json", "results.json"] {
        assert!(workspace.path().join("run/eval").join(file).is_file());
    }
}
