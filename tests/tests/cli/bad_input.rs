//! Wrong input: exit code 2, the place, the key and the value, and a remedy.

use asyncthink_tests::Workspace;

/// A recipe that must be refused by every stage, and before anything is
/// written.
fn refused_recipe(from: &str, to: &str) -> String {
    let workspace = Workspace::changed(from, to);
    let shown = workspace.refused(&["grpo", "tiny.toml"]);
    assert_eq!(
        workspace.refused(&["synth", "tiny.toml", "--dry-run"]),
        shown
    );
    assert!(!workspace.path().join("run").exists(), "nothing is started");
    shown
}

#[test]
fn syntax() {
    insta::assert_snapshot!("syntax", refused_recipe("seed = 1", "seed = = 1"));
}

#[test]
fn unknown_key() {
    insta::assert_snapshot!(
        "unknown_key",
        refused_recipe("group_size = 4", "group_sise = 4")
    );
}

#[test]
fn wrong_type() {
    insta::assert_snapshot!(
        "wrong_type",
        refused_recipe("group_size = 4", "group_size = \"many\"")
    );
}

#[test]
fn out_of_range() {
    insta::assert_snapshot!(
        "out_of_range",
        refused_recipe("learning_rate = 1e-3", "learning_rate = -1e-3")
    );
}

#[test]
fn group_of_one() {
    insta::assert_snapshot!(
        "group_of_one",
        refused_recipe("group_size = 4", "group_size = 1")
    );
}

#[test]
fn tau_at_most_one_over_c() {
    insta::assert_snapshot!("tau", refused_recipe("tau = 0.9", "tau = 0.5"));
}

#[test]
fn everything_at_once() {
    let shown = refused_recipe(
        "group_size = 4\n\n[grpo.optimizer]\nlearning_rate = 1e-4\n\n[grpo.reward]\ntau = 0.9",
        "group_size = 1\n\n[grpo.optimizer]\nlearning_rat = \"1e-4\"\n\n[grpo.reward]\ntau = 0.5",
    );
    insta::assert_snapshot!("everything_at_once", shown);
}

#[test]
fn missing_recipe() {
    let workspace = Workspace::new();
    insta::assert_snapshot!("missing_recipe", workspace.refused(&["sft", "none.toml"]));
}

#[test]
fn missing_files() {
    let workspace = Workspace::new();
    let files = "task={ mcd = { train_file = \"train.jsonl\", test_file = \"test.jsonl\" } }";
    insta::assert_snapshot!(
        "missing_problem_files",
        workspace.refused(&["synth", "tiny.toml", "--set", files])
    );
    let model = "model={ path = \"models/none\" }";
    insta::assert_snapshot!(
        "missing_model",
        workspace.refused(&["sft", "tiny.toml", "--set", model, "--dry-run"])
    );
    insta::assert_snapshot!("missing_pairs", workspace.refused(&["sft", "tiny.toml"]));
    insta::assert_snapshot!(
        "nothing_to_measure",
        workspace.refused(&["eval", "tiny.toml"])
    );
    insta::assert_snapshot!("missing_lines", workspace.refused(&["trace", "none.jsonl"]));
    insta::assert_snapshot!(
        "missing_tokenizer",
        workspace.refused(&["trace", "tiny.toml", "--tokenizer", "models/none"])
    );
}

#[test]
fn missing_section() {
    let workspace = Workspace::changed("[eval]\nnum_problems = 10\n", "");
    insta::assert_snapshot!("missing_section", workspace.refused(&["eval", "tiny.toml"]));
}

#[test]
fn bad_override() {
    let workspace = Workspace::new();
    let args = [
        "sft",
        "tiny.toml",
        "--set",
        "sft.num_stepz=3",
        "--set",
        "seed=x",
    ];
    insta::assert_snapshot!("bad_override", workspace.refused(&args));
}

#[test]
fn bad_resume() {
    let workspace = Workspace::new();
    insta::assert_snapshot!(
        "resume_of_synth",
        workspace.refused(&["synth", "tiny.toml", "--resume", "run"])
    );
    insta::assert_snapshot!(
        "resume_from_nowhere",
        workspace.refused(&["sft", "tiny.toml", "--resume", "none"])
    );
}

#[test]
fn a_refused_or_tried_recipe_is_not_the_run_s() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    workspace.done(&["sft", "tiny.toml"]);
    let resolved = workspace.path().join("run/recipe.toml");
    let before = std::fs::read_to_string(&resolved).expect("the run's recipe");
    let set = "sft.optimizer.learning_rate=0.5";
    workspace.refused(&["sft", "tiny.toml", "--set", set]);
    workspace.done(&["sft", "tiny.toml", "--set", set, "--dry-run"]);
    let after = std::fs::read_to_string(&resolved).expect("the run's recipe");
    assert_eq!(after, before);
}

#[test]
fn a_run_folder_that_cannot_be_written() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path().join("file"), "x").expect("a file");
    for (run_dir, named) in [
        ("file", "`file` is not a folder"),
        ("file/run", "`file` is not a folder"),
        ("/proc/run", "cannot write into `/proc`"),
    ] {
        let set = format!("run_dir={run_dir}");
        for stage in ["synth", "sft", "grpo", "eval"] {
            for more in [&[][..], &["--dry-run"]] {
                let args = [&[stage, "tiny.toml", "--set", &set], more].concat();
                let shown = workspace.refused(&args);
                assert!(shown.contains("error: `run_dir`: "), "{shown}");
                assert!(shown.contains(named), "{shown}");
            }
        }
    }
    // One stage's place is taken, and another's is free.
    std::fs::create_dir(workspace.path().join("run")).expect("a folder");
    std::fs::write(workspace.path().join("run/sft"), "x").expect("a file");
    let shown = workspace.refused(&["sft", "tiny.toml"]);
    assert!(shown.contains("`run/sft` is not a folder"), "{shown}");
    workspace.done(&["synth", "tiny.toml"]);

    let log_dir = ["launch", "--log-dir", "file/logs", "--", "schema"];
    let shown = workspace.refused(&log_dir);
    assert!(
        shown.contains("`--log-dir`: ") && shown.contains("`file/logs`"),
        "{shown}"
    );
}

#[test]
fn grpo_after_an_unfinished_sft() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    workspace.done(&["sft", "tiny.toml", "--set", "sft.num_steps=2"]);
    let shown = workspace.refused(&["grpo", "tiny.toml"]);
    assert!(
        shown.contains("`sft` has stopped, at step 2 of 10"),
        "{shown}"
    );
    assert!(!workspace.path().join("run/grpo").exists());
    let set = "grpo.init_from_unfinished=true";
    let output = workspace.done(&["grpo", "tiny.toml", "--set", set]);
    assert!(workspace.show(&output).contains("warning: "));
}

#[test]
fn run_in_use() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    let path = workspace.path().join("run/.sft.lock");
    let file = std::fs::File::create(path).expect("a file");
    file.lock().expect("a lock");
    insta::assert_snapshot!("run_in_use", workspace.refused(&["sft", "tiny.toml"]));
}

#[test]
fn corrupt_parquet() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    let file = workspace.path().join("run/synth/pairs.parquet");
    let bytes = std::fs::read(&file).expect("the pairs");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("a file");
    insta::assert_snapshot!("corrupt_parquet", workspace.refused(&["sft", "tiny.toml"]));
}

#[test]
fn changed_recipe_and_corrupt_checkpoint() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    workspace.done(&["sft", "tiny.toml"]);
    let changed = [
        "sft",
        "tiny.toml",
        "--set",
        "sft.optimizer.learning_rate=0.5",
        "--set",
        "seed=7",
    ];
    insta::assert_snapshot!("changed_recipe", workspace.refused(&changed));
    let folder = workspace.path().join("run/sft/checkpoints/step_10");
    let file = folder.join("model.safetensors");
    let bytes = std::fs::read(&file).expect("the weights");
    std::fs::write(&file, &bytes[..bytes.len() - 7]).expect("a file");
    let given = [
        "sft",
        "tiny.toml",
        "--resume",
        "run/sft/checkpoints/step_10",
    ];
    insta::assert_snapshot!("corrupt_checkpoint_given", workspace.refused(&given));
    insta::assert_snapshot!(
        "corrupt_checkpoint",
        workspace.refused(&["sft", "tiny.toml"])
    );
    insta::assert_snapshot!("corrupt_model", workspace.refused(&["eval", "tiny.toml"]));
}

#[test]
fn cuda_where_there_is_none() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    // Hides every GPU of a machine that has some. The reason depends on
    // whether this libtorch has its CUDA half, so the text is not frozen.
    let output = workspace
        .command(&["sft", "tiny.toml", "--set", "device=cuda"])
        .env("CUDA_VISIBLE_DEVICES", "-1")
        .output()
        .expect("the program starts");
    let shown = workspace.show(&output);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(shown.contains("error: device `cuda"), "{shown}");
    assert!(shown.contains("\nhint: "), "{shown}");
}
