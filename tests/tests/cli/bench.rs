//! `bench`: one JSON object a line, with the keys that are frozen.

use serde_json::Value;

use asyncthink_tests::{Workspace, stdout};

const FROZEN: [&str; 11] = [
    "bench",
    "shape",
    "parameters",
    "dtype",
    "device",
    "tokens_per_s",
    "flops_share",
    "ceiling_tflops",
    "bandwidth_share",
    "peak_bytes",
    "phases",
];

/// The recipe of the tests with a small workload.
fn workspace() -> Workspace {
    Workspace::changed(
        "[model.init]\n",
        "[bench.rollout]\nnum_prompts = 3\ngroup_size = 2\nprompt_tokens = 20\nnew_tokens = 6\nnum_repeats = 2\n\n\
         [model.init]\nvocab_size = 300\n",
    )
}

fn rollout(workspace: &Workspace, sets: &[&str]) -> Value {
    bench("rollout", workspace, sets)
}

/// The line of a benchmark.
fn bench(name: &str, workspace: &Workspace, sets: &[&str]) -> Value {
    let mut args = vec!["bench", name, "tiny.toml"];
    for set in ["device=cpu", "num_threads=1"].iter().chain(sets) {
        args.extend(["--set", set]);
    }
    let output = workspace.done(&args);
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 1, "{}", workspace.show(&output));
    let line: Value = serde_json::from_str(&text).expect("JSON");
    let keys: Vec<&str> = line
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    for key in FROZEN {
        assert!(keys.contains(&key), "{key}: {text}");
    }
    for key in [
        "tokens_per_s",
        "flops_share",
        "ceiling_tflops",
        "bandwidth_share",
        "peak_bytes",
    ] {
        let value = line[key].as_f64().expect(key);
        assert!(value.is_finite() && value > 0.0, "{key}: {text}");
    }
    assert_eq!(
        (&line["bench"], &line["shape"]),
        (&name.into(), &"tiny".into())
    );
    assert_eq!(
        (&line["dtype"], &line["device"]),
        (&"f32".into(), &"cpu".into())
    );
    line
}

fn sum(line: &Value, key: &str) -> u64 {
    ["prefill", "decode"]
        .map(|phase| line["phases"][phase][key].as_u64().expect(key))
        .iter()
        .sum()
}

#[test]
fn a_plain_rollout_samples_as_many_tokens_as_the_recipe_says() {
    let workspace = workspace();
    let line = rollout(&workspace, &[]);
    assert_eq!(line["repeats"].as_array().expect("repeats").len(), 2);
    for repeat in line["repeats"].as_array().expect("repeats") {
        assert_eq!(repeat["decoded_tokens"], 3 * 2 * 6);
    }
    assert_eq!(sum(&line, "sampled_tokens"), 3 * 2 * 6);
    let cache = |key: &str| line["cache"][key].as_u64().expect(key);
    assert_eq!(cache("given_tokens"), 3 * 2 * 20);
    assert_eq!(
        cache("computed_tokens") + cache("reused_tokens"),
        3 * 2 * 20
    );
    // Each group computes its prompt once, or all of it but a block that is not whole.
    assert!(cache("reused_tokens") >= 3 * 16, "{line}");
    assert_eq!(line["parameters"].as_u64(), Some(parameters()));
}

/// Parameters of the model of the tests with 300 tokens.
fn parameters() -> u64 {
    let layer = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 32 + 2 * 16 + 2 * 4;
    300 * 16 + 2 * layer + 16
}

#[test]
fn episodes_fork_return_and_join_as_the_recipe_says() {
    let workspace = workspace();
    let line = rollout(
        &workspace,
        &[
            "bench.rollout.workload=episodes",
            "bench.rollout.capacity=3",
            "bench.rollout.num_forks=3",
            "bench.rollout.return_tokens=5",
            "bench.rollout.new_tokens=40",
        ],
    );
    let episodes = &line["workload"]["episodes"];
    assert_eq!(
        (&episodes["answered"], &episodes["joins"]),
        (&6.into(), &18.into())
    );
    // Organizers and three workers each decode 40 tokens; a Join puts 5 and a tag into the context.
    assert_eq!(line["repeats"][0]["decoded_tokens"], 6 * 4 * 40);
    let cache = |key: &str| line["cache"][key].as_u64().expect(key);
    assert_eq!(cache("given_tokens"), 6 * (4 * 20 + 3 * 6));
    assert_eq!(
        cache("computed_tokens") + cache("reused_tokens"),
        cache("given_tokens")
    );
    let rows: u64 = sum(&line, "tokens");
    // The row of a sequence's last token is never computed.
    assert!(rows <= cache("computed_tokens") + 6 * 4 * 40, "{line}");
}

#[test]
fn a_workload_that_cannot_be_is_refused_before_work() {
    let workspace = Workspace::new();
    let args = ["bench", "rollout", "tiny.toml"];
    let text = workspace.refused(&args);
    assert!(
        text.contains("`bench rollout` needs a section `[bench.rollout]`"),
        "{text}"
    );
    let workspace = self::workspace();
    let refused = |set: &str| workspace.refused(&[&args[..], &["--set", set]].concat());
    let text = refused("model={ path = \"nowhere\" }");
    assert!(text.contains("`nowhere`: no such folder"), "{text}");
    let text = refused(
        "bench.rollout={ workload = \"episodes\", num_prompts = 1, prompt_tokens = 20, new_tokens = 250, num_forks = 20, \
         return_tokens = 20 }",
    );
    assert!(
        text.contains("more than the model's context (`max_position_embeddings`) of 512"),
        "{text}"
    );
    let text = refused(
        "bench.rollout={ workload = \"episodes\", num_prompts = 1, prompt_tokens = 8, new_tokens = 400, num_forks = 30, \
         return_tokens = 1 }",
    );
    assert!(text.contains("the model's vocabulary has 300"), "{text}");
}

/// Rows of 9 tokens, of which 6 are trained.
const TRAIN: &str = "bench.train={ num_rows = 5, row_tokens = [9, 9], trained_share = 0.7, micro_batch_tokens = 20, num_repeats = 2 }";

#[test]
fn an_update_trains_the_tokens_that_the_recipe_says() {
    let workspace = workspace();
    let line = bench("train", &workspace, &[TRAIN]);
    let workload = |key: &str| line["workload"][key].as_u64().expect(key);
    assert_eq!(
        (workload("computed_tokens"), workload("trained_tokens")),
        (45, 30)
    );
    // Two rows fit into 20 tokens.
    assert_eq!(workload("micro_batches"), 3);
    assert_eq!(workload("trained_parameters"), parameters());
    let repeats = line["repeats"].as_array().expect("repeats");
    assert_eq!(repeats.len(), 2);
    for repeat in repeats {
        // A new model knows nothing: the loss is about that of 300 equal tokens.
        let loss = repeat["loss"].as_f64().expect("a loss");
        assert!((loss - 300_f64.ln()).abs() < 1.0, "{line}");
    }
    let phases = &line["phases"];
    let seconds = |phase: &str| phases[phase]["seconds"].as_f64();
    let sum: f64 = ["forward_backward", "clip", "optimizer"]
        .iter()
        .filter_map(|phase| seconds(phase))
        .sum();
    let whole = 45.0 / line["tokens_per_s"].as_f64().expect("a rate");
    assert!(sum > 0.0 && sum <= whole * 1.001, "{line}");
    for phase in ["clip", "optimizer"] {
        assert!(seconds(phase).is_some(), "{line}");
    }
}

#[test]
fn a_step_samples_and_trains_every_episode() {
    let workspace = workspace();
    let set = "bench.step={ num_prompts = 2, group_size = 3, prompt_tokens = 7, new_tokens = 5, micro_batch_tokens = 30, num_repeats = 2 }";
    let line = bench("step", &workspace, &[set]);
    let workload = |key: &str| line["workload"][key].as_u64().expect(key);
    assert_eq!((workload("rows"), workload("decoded_tokens")), (6, 30));
    // No reward is the mean of its group: all rows have a gradient.
    assert_eq!(
        (workload("computed_tokens"), workload("trained_tokens")),
        (72, 30)
    );
    assert_eq!(workload("micro_batches"), 3);
    let repeats = line["repeats"].as_array().expect("repeats");
    assert_eq!(repeats.len(), 2);
    for repeat in repeats {
        let norm = repeat["grad_norm"].as_f64();
        assert!(norm.is_some_and(|norm| norm > 0.0), "{line}");
    }
    for phase in ["rollout", "train", "optimizer"] {
        let seconds = line["phases"][phase]["seconds"].as_f64();
        assert!(seconds.is_some_and(|seconds| seconds > 0.0), "{line}");
    }
    // The run's folder goes.
    let left = fs_err::read_dir(workspace.path().join("run")).expect("a folder");
    assert_eq!(left.count(), 0);
}
