//! Model folders as people have them: what commands say of them, and what `--dry-run` finds in them before a run would.

use std::path::Path;

use asyncthink_data::{TaskTokenizerConfig, Tokenizer, task_tokenizer};
use asyncthink_model::{ModelConfig, ModelSizes, Precision, PretrainedModel};
use asyncthink_tests::{Workspace, stdout};
use serde_json::{Value, json};
use tch::Device;

use crate::model_folder;

/// Reference log-probs by `transformers`: `scripts/golden/foreign_folders.py`.
const FOREIGN: &str = include_str!("../../../crates/model/tests/golden/foreign_folders.json");

/// Reference log-probs by PEFT: `scripts/golden/lora_logits.py`.
const LORA: &str = include_str!("../../../crates/model/tests/golden/lora.json");

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn write(path: &Path, content: &str) {
    fs_err::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs_err::write(path, content).expect("a file");
}

/// Shapes of a golden file, by name.
fn shapes(value: &Value) -> Vec<(String, Vec<i64>)> {
    let entries = value.as_object().expect("an object").iter();
    let shape = |value: &Value| serde_json::from_value(value.clone()).expect("a shape");
    entries
        .map(|(name, value)| (name.clone(), shape(value)))
        .collect()
}

/// Writes the folder `model` of a case of `FOREIGN` that has one weight file.
fn write_foreign(dir: &Path, case: &Value) {
    write(&dir.join("config.json"), &case["config"].to_string());
    let tensors = case["files"]["model.safetensors"]
        .as_object()
        .expect("tensors");
    let named: Vec<_> = tensors
        .iter()
        .map(|(name, it)| {
            let values_of = it["values_of"].as_str().expect("a name").to_owned();
            let shape = serde_json::from_value(it["shape"].clone()).expect("a shape");
            (name.clone(), values_of, shape)
        })
        .collect();
    let path = dir.join("model.safetensors");
    model_folder::write_named_tensors(&path, &named, model_folder::WIDTH);
}

/// Fails unless the scores of `args` are those of the case.
fn assert_scores(workspace: &Workspace, args: &[&str], golden: &Value, case: &Value) -> String {
    let line = json!({"id": 0, "input_ids": golden["ids"]}).to_string();
    let args = [&["score", "--device", "cpu", "-"], args].concat();
    let output = workspace.with_input(&args, line.as_bytes());
    assert!(output.status.success(), "{}", workspace.show(&output));
    let answer = parse(&stdout(&output));
    let (ours, expected) = (&answer["logprobs"], &case["logprobs"]);
    for (ours, expected) in ours
        .as_array()
        .into_iter()
        .flatten()
        .zip(expected.as_array().expect("a list"))
    {
        let off = ours.as_f64().expect("a number") - expected.as_f64().expect("a number");
        assert!(off.abs() < 1e-4, "{args:?}: off by {off}");
    }
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn a_head_that_is_not_the_embedding_is_kept_and_said() {
    let workspace = Workspace::new();
    let golden = parse(FOREIGN);
    let case = &golden["cases"]["tied_head_differs"];
    write_foreign(&workspace.path().join("model"), case);
    let said = assert_scores(&workspace, &["--model", "model"], &golden, case);
    assert!(
        said.starts_with("warning: `model/config.json`: `tie_word_embeddings` is true"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn an_adapter_of_a_hub_s_model_is_scored_with_the_base_that_is_given() {
    let workspace = Workspace::new();
    let golden = parse(LORA);
    let case = &golden["cases"]["expression"];
    let (base, adapter) = (
        workspace.path().join("base"),
        workspace.path().join("adapter"),
    );
    fs_err::create_dir(&base).expect("a folder");
    let config = case["config"].as_object().expect("an object");
    model_folder::write_folder(&base, config, model_folder::WIDTH, 1);
    let mut config = case["adapter_config"].clone();
    config["base_model_name_or_path"] = json!("Qwen/Qwen3-4B");
    write(&adapter.join("adapter_config.json"), &config.to_string());
    let width = golden["adapter_width"].as_f64().expect("a number");
    let path = adapter.join("adapter_model.safetensors");
    model_folder::write_tensors(&path, &shapes(&case["shapes"]), width);

    assert_scores(
        &workspace,
        &["--model", "adapter", "--base", "base"],
        &golden,
        case,
    );
    write(&workspace.path().join("ids.jsonl"), "");
    let refused =
        |args: &[&str]| workspace.refused(&[&["score", "ids.jsonl", "--model"], args].concat());
    let shown = refused(&["adapter"]);
    assert!(
        shown.contains("`Qwen/Qwen3-4B`") && shown.contains("`--base DIR`"),
        "{shown}"
    );
    let shown = refused(&["adapter", "--base", "none"]);
    assert!(shown.contains("`--base none`: no such folder"), "{shown}");
    let shown = refused(&["base", "--base", "base"]);
    assert!(shown.contains("`base` is no adapter folder"), "{shown}");
}

/// A whole model of random weights for the prompts of the tests.
fn write_model(dir: &Path, max_position_embeddings: i64) {
    let corpus = ["This is main process. This is a subprocess. = "];
    let tokenizer = task_tokenizer(corpus, &TaskTokenizerConfig::default());
    write_model_for(
        tokenizer.expect("a tokenizer"),
        dir,
        max_position_embeddings,
    );
}

fn write_model_for(tokenizer: Tokenizer, dir: &Path, max_position_embeddings: i64) {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: i64::try_from(tokenizer.vocab_size()).expect("a size"),
        hidden_size: 16,
        intermediate_size: 32,
        num_layers: 1,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 4,
        rope_theta: 10_000.0,
        max_position_embeddings,
        tie_word_embeddings: true,
        eos_token_id: 0,
    });
    let config = config.expect("a configuration");
    let model =
        PretrainedModel::init(&config, tokenizer, Device::Cpu, Precision::F32, 1).expect("a model");
    fs_err::create_dir_all(dir).expect("a folder");
    model.save(dir).expect("files");
}

const MODEL: &str = "model={ path = \"model\" }";

#[test]
fn a_dry_run_checks_weights_tokenizer_and_prompts() {
    let workspace = Workspace::new();
    let model = workspace.path().join("model");
    write_model(&model, 512);
    for stage in ["synth", "sft", "grpo", "eval"] {
        let output = workspace.done(&[stage, "tiny.toml", "--set", MODEL, "--dry-run"]);
        let said = String::from_utf8(output.stderr).expect("text");
        for line in [
            "checked: the weights of `model`: 13 tensors, ",
            "checked: its tokenizer: ",
            "checked: a worker's prompt: ",
            "checked: the organizer's prompts of 120 problems: at most ",
        ] {
            // `grpo` and `eval` begin with what `sft` makes, or with the model where nothing is made yet.
            assert!(said.contains(line), "{stage}: {said}");
        }
        let says_cache = said.contains("cache: ") && said.contains(" whole episodes");
        assert_eq!(says_cache, ["grpo", "eval"].contains(&stage), "{said}");
    }

    // Keys and values of one layer, one head and 4 to 16 values: an episode needs some 20 blocks.
    let cache = |budget: &str| {
        let budget = format!("engine.cache_memory={budget}");
        let sets = ["--set", MODEL, "--set", &budget, "--dry-run"];
        workspace.run(&[["grpo", "tiny.toml"].as_slice(), &sets].concat())
    };
    let shown = cache("16MiB");
    assert!(shown.status.success(), "{shown:?}");
    let said = String::from_utf8(shown.stderr).expect("text");
    assert!(
        said.contains("cache: 16.00 MiB (`engine.cache_memory`): "),
        "{said}"
    );
    let shown = cache("4KiB");
    assert_eq!(shown.status.code(), Some(2));
    let said = String::from_utf8(shown.stderr).expect("text");
    assert!(
        said.contains("the KV cache cannot hold one episode: "),
        "{said}"
    );
    assert!(said.contains("hint: "), "{said}");

    let dry_run = |stage| workspace.refused(&[stage, "tiny.toml", "--set", MODEL, "--dry-run"]);
    let weights = model.join("model.safetensors");
    let bytes = fs_err::read(&weights).expect("weights");
    fs_err::write(&weights, &bytes[..bytes.len() - 4]).expect("a file");
    assert!(dry_run("sft").contains("tensors end at byte"));
    fs_err::write(&weights, &bytes).expect("a file");

    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    write(&weights, pointer);
    let shown = dry_run("grpo");
    assert!(
        shown.contains("Git LFS pointer") && shown.contains("git lfs pull"),
        "{shown}"
    );
    fs_err::write(&weights, &bytes).expect("a file");

    let config = model.join("config.json");
    let text = fs_err::read_to_string(&config).expect("text");
    write(
        &config,
        &text.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2"),
    );
    assert!(dry_run("eval").contains("missing `model.layers.1."));
    write(&config, &text);

    write_model(&model, 8);
    let shown = dry_run("sft");
    assert!(
        shown.contains("(`max_position_embeddings`) only 8"),
        "{shown}"
    );
    assert!(
        !workspace.path().join("run/sft").exists(),
        "nothing is started"
    );
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_before_the_start() {
    let workspace = Workspace::new();
    write_model(&workspace.path().join("model"), 512);
    let config = workspace.path().join("model/config.json");
    let text = fs_err::read_to_string(&config).expect("text");
    let quantised = text.replacen(
        '{',
        "{\"quantization_config\": {\"quant_method\": \"fp8\"},",
        1,
    );
    write(&config, &quantised);
    let shown = workspace.refused(&["sft", "tiny.toml", "--set", MODEL]);
    assert!(
        shown.contains("`quantization_config` (`fp8`)") && shown.contains("dequantise"),
        "{shown}"
    );
    assert!(!workspace.path().join("run").exists(), "nothing is started");

    write(&workspace.path().join("model/pytorch_model.bin"), "");
    fs_err::remove_file(workspace.path().join("model/model.safetensors")).expect("weights");
    let shown = workspace.refused(&["sft", "tiny.toml", "--set", MODEL]);
    assert!(
        shown.contains("but `pytorch_model.bin`") && shown.contains("save_pretrained"),
        "{shown}"
    );
}

/// Adapters from elsewhere go on being trained on a base that the recipe gives; their checkpoints find it alone.
#[test]
fn adapters_are_trained_on_the_base_of_the_recipe() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    let tokenizer = Tokenizer::from_dir(&workspace.path().join("run/synth/tokenizer"));
    let base = workspace.path().join("base");
    write_model_for(tokenizer.expect("a tokenizer"), &base, 512);
    let adapter = workspace.path().join("adapter");
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": r".*\.q_proj",
        "base_model_name_or_path": "Qwen/Qwen3-4B"});
    write(&adapter.join("adapter_config.json"), &config.to_string());
    fs_err::copy(base.join("tokenizer.json"), adapter.join("tokenizer.json")).expect("a copy");
    let settings = "tokenizer_config.json";
    fs_err::copy(base.join(settings), adapter.join(settings)).expect("a copy");
    let tensor = |part: &str, shape: [i64; 2]| {
        let name = format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight");
        (name, shape.to_vec())
    };
    let tensors = [tensor("A", [1, 16]), tensor("B", [16, 1])];
    model_folder::write_tensors(&adapter.join("adapter_model.safetensors"), &tensors, 0.1);

    let model = |more: &str| {
        format!(
            "model={{ path = \"adapter\", lora = {{ rank = 1, alpha = 2, target_modules = [\"q_proj\"] }}{more} }}"
        )
    };
    let shown = workspace.refused(&["sft", "tiny.toml", "--set", &model("")]);
    assert!(shown.contains("`model.adapter_base`"), "{shown}");
    let shown = workspace.refused(&[
        "sft",
        "tiny.toml",
        "--set",
        &model(", adapter_base = \"none\""),
    ]);
    assert!(
        shown.contains("error: `model.adapter_base` = `\"none\"`: no such folder"),
        "{shown}"
    );

    let model = model(", adapter_base = \"base\"");
    workspace.done(&["synth", "tiny.toml", "--set", &model]);
    let num_steps =
        "sft={ num_steps = 1, batch_tokens = 256, optimizer = { learning_rate = 1e-3 } }";
    workspace.done(&["sft", "tiny.toml", "--set", &model, "--set", num_steps]);
    let saved = workspace
        .path()
        .join("run/sft/checkpoints/latest/adapter_config.json");
    let saved = parse(&fs_err::read_to_string(saved).expect("text"));
    let written = saved["base_model_name_or_path"].as_str().expect("a path");
    assert_eq!(Path::new(written), base.canonicalize().expect("a folder"));
    write(
        &workspace.path().join("ids.jsonl"),
        "{\"id\": 0, \"input_ids\": [1, 2]}",
    );
    workspace.done(&[
        "score",
        "ids.jsonl",
        "--model",
        "run/sft/checkpoints/latest",
    ]);
}
