//! What a wrong recipe says, and that it says everything at once.

use std::fmt::Write as _;
use std::path::Path;

use asyncthink_recipe::{EngineDtype, ErrorKind, Recipe, RecipeError, RecipeErrors, Stage};
use proptest::prelude::*;

const GOOD: &str = include_str!("good.toml");

fn load(text: &str, sets: &[&str]) -> Result<Recipe, RecipeErrors> {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    Recipe::parse(text, Path::new("recipe.toml"), &sets)
}

fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

fn refused(text: &str, sets: &[&str]) -> RecipeErrors {
    load(text, sets).expect_err("the recipe is wrong")
}

/// Kind and key of each error.
fn kinds(errors: &RecipeErrors) -> Vec<(ErrorKind, &str)> {
    let list = errors.errors().iter();
    list.map(|error| (error.kind(), error.key())).collect()
}

#[test]
fn estimators_that_do_not_fit_together_are_refused_with_a_remedy() {
    let correction = "grpo.sampler_correction={ mode = \"token_truncate\" }";
    let masks =
        |limits: &str| format!("grpo.sampler_correction={{ mode = \"sequence_mask\", {limits} }}");
    let trainer = "grpo.logp_old=trainer";
    let cases: [(&[&str], &str, &str); 12] = [
        (&[correction], "grpo.logp_old", "logp_old = \"trainer\""),
        (
            &[trainer, &correction.replace(" }", ", min_weight = 0.5 }")],
            "grpo.sampler_correction.min_weight",
            "token_mask",
        ),
        (
            &[trainer, &masks("min_weight = 2.0, max_weight = 2.0")],
            "grpo.sampler_correction.min_weight",
            "0.5",
        ),
        (
            &[trainer, "grpo.sampler_correction={ max_weight = 2.0 }"],
            "grpo.sampler_correction.mode",
            "add",
        ),
        (
            &[
                "grpo.kl_beta=0.1",
                "grpo.kl_in=reward",
                "grpo.kl_bias_correction=true",
            ],
            "grpo.kl_bias_correction",
            "kl_in = \"loss\"",
        ),
        (
            &[
                "grpo.kl_beta=0.1",
                "grpo.kl_estimator=k2",
                "grpo.kl_bias_correction=true",
            ],
            "grpo.kl_bias_correction",
            "k3",
        ),
        (&["grpo.kl_estimator=k4"], "grpo.kl_estimator", "k1"),
        (
            &["grpo.num_mini_batches=3"],
            "grpo.num_mini_batches",
            "prompts_per_step",
        ),
        (
            &["grpo.max_sampling_rounds=0"],
            "grpo.max_sampling_rounds",
            "1",
        ),
        (
            &["grpo.reward.overlong_penalty=2.0"],
            "grpo.reward.overlong_penalty",
            "overlong_buffer_tokens",
        ),
        (
            &["grpo.reward.overlong_buffer_tokens=100000"],
            "grpo.reward.overlong_buffer_tokens",
            "an eighth",
        ),
        (
            &["grpo.advantage_group=worker"],
            "grpo.advantage_group",
            "episode",
        ),
    ];
    for (sets, key, remedy) in cases {
        let errors = refused(GOOD, sets);
        let found = errors.errors().iter().find(|error| error.key() == key);
        let error = found.unwrap_or_else(|| panic!("{sets:?}: {errors}"));
        assert!(error.hint().contains(remedy), "{sets:?}: {errors}");
        assert_eq!(errors.errors().len(), 1, "{sets:?}: {errors}");
    }
    let fits: [&[&str]; 3] = [
        &[trainer, correction, "grpo.num_mini_batches=2"],
        &[trainer, &masks("min_weight = 0.5, max_weight = 2.0")],
        &[
            "grpo.kl_beta=0.1",
            "grpo.kl_estimator=k1",
            "grpo.kl_bias_correction=true",
        ],
    ];
    for sets in fits {
        load(GOOD, sets).unwrap_or_else(|errors| panic!("{sets:?}: {errors}"));
    }
    // A recipe that says nothing of them resolves to one that does not either: earlier runs go on.
    let resolved = load(GOOD, &[]).expect("good").to_toml();
    for key in [
        "kl_in",
        "kl_estimator",
        "logp_old",
        "mini_batches",
        "overlong",
        "entropy_coefficient",
        "advantage_group",
    ] {
        assert!(!resolved.contains(key), "{key}");
    }
}

#[test]
fn the_good_recipe_is_good() {
    load(GOOD, &[]).expect("good");
}

#[test]
fn each_kind_of_error_has_a_place_a_reason_and_a_remedy() {
    let cases = [
        ("syntax", with("seed = 1", "seed = ")),
        ("duplicate_key", with("seed = 1", "seed = 1\nseed = 2")),
        ("unknown_key", with("group_size = 4", "groupsize = 4")),
        (
            "key_of_another_section",
            with("group_size = 4", "lambda = 4"),
        ),
        ("unknown_section", with("[eval]", "[evaluation]")),
        ("wrong_type", with("group_size = 4", "group_size = \"4\"")),
        ("wrong_choice", with("\"cosine\"", "\"cosin\"")),
        ("group_of_one", with("group_size = 4", "group_size = 1")),
        ("tau", with("tau = 0.9", "tau = 0.5")),
        ("negative_count", with("num_steps = 10", "num_steps = -10")),
        ("not_finite", with("tau = 0.9", "tau = nan")),
        ("missing_key", with("capacity = 2\n", "")),
        ("missing_section", with("[protocol]", "[protocl]")),
        (
            "both_models",
            with("[model.init]", "[model]\npath = \"m\"\n[model.init]"),
        ),
        ("device", with("seed = 1", "seed = 1\ndevice = \"gpu\"")),
        ("placeholder", with("{sub_query}", "{subquery}")),
        (
            "chat_on_a_new_model",
            with("[model.init]", "[prompts.chat]\n[model.init]"),
        ),
        (
            "chat_keys",
            with(
                "[model.init]",
                "[prompts.chat]\nsystem = \"{workers}\"\nenable_thinking = \"no\"\nsistem = \"\"\n[model.init]",
            ),
        ),
        ("range_order", with("[1, 12]", "[12, 1]")),
        ("range_length", with("[1, 12]", "[1, 2, 3]")),
        ("heads", with("num_kv_heads = 2", "num_kv_heads = 3")),
        (
            "lora_on_a_new_model",
            with(
                "[model.init]",
                "[model.lora]\nrank = 8\nalpha = 16\n[model.init]",
            ),
        ),
        (
            "lora_module",
            with(
                "[model.init]",
                "[model.lora]\nrank = 0\nalpha = 0\ntarget_modules = [\"q_proj\", \"lm_head\"]\n[model.init]",
            ),
        ),
        (
            "best_that_is_never_measured",
            with("[sft]", "[sft]\nkeep_best_checkpoints = 1"),
        ),
        (
            "allowed_changes",
            with(
                "seed = 1",
                "seed = 1\nallow_changed = [\"grpo.optimizer.learning_rat\", \"group_size\", \"data\", \"grpo.reward\", \"initial_model\"]",
            ),
        ),
    ];
    let mut report = String::new();
    for (name, text) in cases
        .into_iter()
        .chain(evaluation_cases())
        .chain(bench_cases())
    {
        writeln!(report, "===== {name}\n{}\n", refused(&text, &[])).expect("a string");
    }
    insta::assert_snapshot!("each_kind", report);
}

/// Evaluations during a run that cannot be.
fn evaluation_cases() -> Vec<(&'static str, String)> {
    vec![
        (
            "evaluated_on_nothing",
            with("[grpo]", "[grpo]\neval_every_steps = 2"),
        ),
        (
            "never_evaluated",
            with(
                "[grpo]",
                "[grpo]\neval_num_problems = 2\nbest_metric = \"validation_accuracy\"\nkeep_best_checkpoints = 1\n\
                 early_stopping_patience = 2",
            ),
        ),
        (
            "stopped_by_what_is_not_evaluated",
            with(
                "[sft]",
                "[sft]\neval_every_steps = 1\nearly_stopping_patience = 2\nbest_metric = \"loss\"",
            ),
        ),
        (
            "best_of_unevaluated_checkpoints",
            with(
                "[grpo]",
                "[grpo]\neval_every_steps = 3\nsave_every_steps = 4\nkeep_best_checkpoints = 1\n\
                 best_metric = \"validation_reward\"\nearly_stopping_threshold = 0.1",
            ),
        ),
    ]
}

/// Workloads that cannot be.
fn bench_cases() -> Vec<(&'static str, String)> {
    vec![
        (
            "bench_episodes",
            with(
                "[eval]",
                "[bench.rollout]\nworkload = \"episodes\"\nnum_prompts = 1000\ngroup_size = 2000\nprompt_tokens = 4\n\
                 new_tokens = 20\n[eval]",
            ),
        ),
        (
            "bench_context",
            with(
                "[eval]",
                "[bench.rollout]\nnum_prompts = 1\nprompt_tokens = 500\nnew_tokens = 20\ntemperature = 1e-40\n[eval]",
            )
            .replacen("head_dim", "vocab_size = 256\nhead_dim", 1),
        ),
        (
            "bench_of_one_agent",
            with(
                "[eval]",
                "[bench.rollout]\nworkload = \"episodes\"\nnum_prompts = 1\nprompt_tokens = 50\nnew_tokens = 100\n[eval]",
            )
            .replacen("head_dim", "vocab_size = 256\nhead_dim", 1)
            .replacen("capacity = 2", "capacity = 1", 1)
            .replacen("tau = 0.9", "tau = 0.9\nlambda = 0", 1),
        ),
        (
            "bench_rows",
            with(
                "[eval]",
                "[bench.train]\nnum_rows = 4\nrow_tokens = [20, 10]\ntrained_share = 0\n[eval]",
            ),
        ),
        (
            "bench_rows_of_the_context",
            with(
                "[eval]",
                "[bench.train]\nnum_rows = 4\nrow_tokens = [20, 1000]\n[bench.step]\nnum_prompts = 2\nprompt_tokens = 500\n\
                 new_tokens = 20\n[eval]",
            )
            .replacen("head_dim", "vocab_size = 256\nhead_dim", 1),
        ),
    ]
}

#[test]
fn everything_is_named_at_once() {
    let text = with("group_size = 4", "group_size = 1\nfoo = 2")
        .replacen("tau = 0.9", "tau = 0.5", 1)
        .replacen("name = \"test\"", "name = 7", 1)
        .replacen("learning_rate = 1e-3", "learning_rate = \"fast\"", 1);
    let errors = refused(
        &text,
        &["eval.temperature=-1", "device=tpu", "x", "seed.a=1"],
    );
    assert_eq!(
        kinds(&errors),
        [
            (ErrorKind::WrongType, "name"),
            (ErrorKind::WrongType, "sft.optimizer.learning_rate"),
            (ErrorKind::OutOfRange, "grpo.group_size"),
            (ErrorKind::UnknownKey, "grpo.foo"),
            (ErrorKind::Conflict, "grpo.reward.tau"),
            (ErrorKind::OutOfRange, "eval.temperature"),
            (ErrorKind::OutOfRange, "device"),
            (ErrorKind::Override, ""),
            (ErrorKind::Override, ""),
        ]
    );
    insta::assert_snapshot!("everything_at_once", errors.to_string());
}

#[test]
fn every_syntax_error_is_named() {
    let errors = refused("a = \nb = 1 2\n[c\n", &[]);
    let lines: Vec<_> = errors.errors().iter().map(RecipeError::line).collect();
    assert!(
        errors
            .errors()
            .iter()
            .all(|error| error.kind() == ErrorKind::Syntax)
    );
    for line in [1, 2, 3] {
        assert!(lines.contains(&Some(line)), "{errors}");
    }
}

#[test]
fn overrides_win_and_are_named() {
    let recipe = load(
        GOOD,
        &[
            "grpo.group_size=16",
            "device=cuda:3",
            "name=\"other\"",
            "task.mcd.number_range=[1, 20]",
            "eval={ samples_per_problem = 2 }",
        ],
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(recipe.grpo().expect("a section").group_size, 16);
    assert_eq!(recipe.device.to_string(), "cuda:3");
    assert_eq!(recipe.name, "other");
    assert_eq!(recipe.eval().expect("a section").samples_per_problem, 2);
    assert!(recipe.to_toml().contains("group_size = 16"));

    let errors = refused(GOOD, &["grpo.group_size=1"]);
    assert!(
        errors.to_string().contains("--> --set grpo.group_size=1"),
        "{errors}"
    );
}

#[test]
fn a_rule_sees_the_default_of_an_absent_key() {
    let errors = refused(
        &with("max_position_embeddings = 512\n", ""),
        &["protocol.worker_max_tokens=5000"],
    );
    assert_eq!(
        kinds(&errors),
        [(ErrorKind::Conflict, "model.init.max_position_embeddings")]
    );
    assert!(
        errors.to_string().contains("= `2048` (the default)"),
        "{errors}"
    );
}

#[test]
fn a_gated_reward_must_punish_format_errors() {
    for value in ["0", "0.1"] {
        let format_error = format!("grpo.reward.format_error={value}");
        let errors = refused(GOOD, &[&format_error]);
        assert_eq!(
            kinds(&errors),
            [(ErrorKind::Conflict, "grpo.reward.format_error")]
        );
        load(GOOD, &[&format_error, "grpo.reward.gate_concurrency=false"]).expect("not gated");
    }
    let recipe = load(GOOD, &[]).expect("the defaults agree");
    let reward = &recipe.grpo.as_ref().expect("a section").reward;
    assert!(reward.gate_concurrency && reward.format_error < 0.0);
}

#[test]
fn validation_needs_problems_of_its_own() {
    let errors = refused(GOOD, &["eval.split=validation"]);
    assert_eq!(kinds(&errors), [(ErrorKind::Conflict, "eval.split")]);
    let made = "task.mcd.num_validation_problems=9";
    let errors = refused(GOOD, &["eval.split=validation", made]);
    assert_eq!(kinds(&errors), [(ErrorKind::Conflict, "eval.num_problems")]);
    let made = "task.mcd.num_validation_problems=10";
    load(GOOD, &["eval.split=validation", made]).expect("as many as are measured");
    let errors = refused(GOOD, &["task.mcd.validation_target_fraction=0.1"]);
    assert_eq!(
        kinds(&errors),
        [(ErrorKind::Conflict, "task.mcd.validation_target_fraction")]
    );
}

#[test]
fn tau_has_no_say_where_nothing_is_paid() {
    load(
        GOOD,
        &[
            "protocol.capacity=1",
            "grpo.reward.lambda=0",
            "synth.topology_max_forks=0",
        ],
    )
    .expect("sequential thinking is a pool of one");
    let errors = refused(GOOD, &["protocol.capacity=1", "synth.topology_max_forks=0"]);
    assert_eq!(
        kinds(&errors),
        [(ErrorKind::Conflict, "grpo.reward.lambda")]
    );
    // 1/3 is above the float 0.333 and below 0.334.
    refused(GOOD, &["protocol.capacity=3", "grpo.reward.tau=0.333"]);
    load(GOOD, &["protocol.capacity=3", "grpo.reward.tau=0.334"]).expect("above 1/3");
}

#[test]
fn the_best_are_kept_by_what_is_measured() {
    for sets in [
        &["sft.keep_best_checkpoints=1", "sft.eval_every_steps=5"][..],
        &["sft.keep_best_checkpoints=1", "sft.best_metric=loss"],
        &["sft.best_metric=held_out_loss"],
        &["grpo.keep_best_checkpoints=1", "grpo.best_metric=eta_ratio"],
    ] {
        let recipe = load(GOOD, sets).unwrap_or_else(|errors| panic!("{errors}"));
        let resolved = load(&recipe.to_toml(), &[]).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(*recipe, *resolved);
    }
    let errors = refused(GOOD, &["grpo.best_metric=loss"]);
    assert_eq!(
        kinds(&errors),
        [(ErrorKind::OutOfRange, "grpo.best_metric")]
    );
}

#[test]
fn sizes_that_no_machine_holds_are_refused() {
    let huge = [
        ("grpo.group_size=1000000000000000000", "grpo.group_size"),
        (
            "grpo.prompts_per_step=9223372036854775807",
            "grpo.prompts_per_step",
        ),
        (
            "grpo.micro_batch_tokens=4611686018427387904",
            "grpo.micro_batch_tokens",
        ),
        (
            "sft.optimizer.warmup_steps=4611686018427387904",
            "sft.optimizer.warmup_steps",
        ),
        (
            "eval.bootstrap_samples=1000000000",
            "eval.bootstrap_samples",
        ),
        (
            "eval.samples_per_problem=1000000000",
            "eval.samples_per_problem",
        ),
        ("synth.num_traces=1000000000000", "synth.num_traces"),
        (
            "model.init.hidden_size=4611686018427387904",
            "model.init.hidden_size",
        ),
        (
            "protocol.worker_max_tokens=4294967296",
            "protocol.worker_max_tokens",
        ),
        ("engine.max_agents=1000000000", "engine.max_agents"),
        (
            "task.mcd.number_range=[0, 9223372036854775807]",
            "task.mcd.number_range[1]",
        ),
        (
            "task.mcd.number_range=[-9223372036854775807, 12]",
            "task.mcd.number_range[0]",
        ),
        (
            "task.mcd.numbers_per_solution=[2, 9999]",
            "task.mcd.numbers_per_solution[1]",
        ),
    ];
    for (set, key) in huge {
        let errors = refused(GOOD, &[set]);
        assert!(
            kinds(&errors).contains(&(ErrorKind::OutOfRange, key)),
            "{errors}"
        );
    }
    // Each alone is a possible size; together they are not.
    let errors = refused(
        GOOD,
        &[
            "grpo.group_size=500000",
            "grpo.prompts_per_step=100",
            "eval.samples_per_problem=10000",
            "eval.num_problems=10000",
            "task.mcd.num_test_problems=10000",
        ],
    );
    assert_eq!(
        kinds(&errors),
        [
            (ErrorKind::Conflict, "grpo.group_size"),
            (ErrorKind::Conflict, "eval.samples_per_problem"),
        ]
    );
}

#[test]
fn a_temperature_that_no_logit_can_be_divided_by_is_refused() {
    for key in ["grpo.temperature", "eval.temperature"] {
        for value in ["1e-40", "1e-45", "1e-300", "1.1e-38"] {
            let errors = refused(GOOD, &[&format!("{key}={value}")]);
            assert_eq!(kinds(&errors), [(ErrorKind::OutOfRange, key)]);
            assert!(
                errors.to_string().contains("the smallest is 1.2e-38"),
                "{errors}"
            );
        }
        load(GOOD, &[&format!("{key}=1.2e-38")]).expect("small");
    }
    let errors = refused(GOOD, &["eval.temperature=1e-40"]);
    assert!(errors.to_string().contains("temperature = 0"), "{errors}");
    load(GOOD, &["eval.temperature=0"]).expect("the likeliest token");
}

#[test]
fn the_engine_holds_a_whole_episode() {
    let recipe = load(GOOD, &["engine.max_agents=2"]).expect("organizer and worker");
    assert_eq!(recipe.engine.max_agents, Some(2));
    assert!(recipe.to_toml().contains("[engine]\nmax_agents = 2"));
    assert_eq!(load(GOOD, &[]).expect("good").engine.max_agents, None);
    for key in ["engine.max_agents", "engine.max_batch_tokens"] {
        let errors = refused(GOOD, &[&format!("{key}=1")]);
        assert_eq!(kinds(&errors), [(ErrorKind::Conflict, key)]);
    }
    for (size, is_good) in [(16, true), (48, true), (24, false), (8, false), (17, false)] {
        let set = format!("engine.block_size={size}");
        if is_good {
            assert_eq!(
                load(GOOD, &[&set]).expect("good").engine.block_size,
                Some(size)
            );
        } else {
            let errors = refused(GOOD, &[&set]);
            let expected = (ErrorKind::OutOfRange, "engine.block_size");
            assert_eq!(kinds(&errors)[0], expected);
        }
    }
    let recipe = load(GOOD, &["engine.dtype=bf16"]).expect("a known format");
    assert_eq!(recipe.engine.dtype, EngineDtype::Bf16);
    let errors = refused(GOOD, &["engine.dtype=f16"]);
    assert_eq!(errors.errors()[0].key(), "engine.dtype");
}

#[test]
fn problems_come_from_the_generator_or_from_files() {
    let files = ["task.mcd.train_file=a.jsonl", "task.mcd.test_file=b.jsonl"];
    let errors = refused(GOOD, &files);
    assert!(
        errors
            .errors()
            .iter()
            .all(|error| error.kind() == ErrorKind::Conflict)
    );
    assert_eq!(errors.errors().len(), 5);

    let errors = refused(GOOD, &["task={ mcd = { train_file = \"a.jsonl\" } }"]);
    assert_eq!(
        kinds(&errors),
        [(ErrorKind::MissingKey, "task.mcd.test_file")]
    );

    let recipe = load(
        GOOD,
        &["task={ mcd = { train_file = \"no.jsonl\", test_file = \"none.jsonl\" } }"],
    )
    .expect("files are looked for when a stage starts");
    let errors = recipe.check_inputs(Stage::Synth).expect_err("no files");
    assert_eq!(
        kinds(&errors),
        [
            (ErrorKind::MissingFile, "task.mcd.train_file"),
            (ErrorKind::MissingFile, "task.mcd.test_file"),
        ]
    );
}

#[test]
fn a_stage_needs_its_section_and_its_model() {
    let recipe = load(GOOD, &[]).expect("good");
    for stage in [Stage::Synth, Stage::Sft, Stage::Grpo, Stage::Eval] {
        recipe.check_inputs(stage).expect("all sections are there");
    }
    let end = GOOD.find("[grpo]").expect("the section");
    let recipe = load(&GOOD[..end], &[]).expect("a stage may be left out");
    let errors = recipe.check_inputs(Stage::Grpo).expect_err("no section");
    assert_eq!(kinds(&errors), [(ErrorKind::MissingKey, "grpo")]);
    assert_eq!(recipe.grpo().expect_err("no section"), errors);

    let recipe = load(GOOD, &["model={ path = \"no/such/model\" }"])
        .expect("the folder is looked for later");
    let errors = recipe.check_inputs(Stage::Sft).expect_err("no model");
    insta::assert_snapshot!("missing_model", errors.to_string());
}

#[test]
fn a_folder_says_what_it_has_in_place_of_a_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str| std::fs::write(dir.path().join(name), "").expect("a file");
    let path = dir.path().display();
    let check = |more: &str| {
        let model = format!("model={{ path = \"{path}\"{more} }}");
        let recipe = load(GOOD, &[&model]).expect("the folder is looked at later");
        recipe.check_inputs(Stage::Sft)
    };
    std::fs::create_dir(dir.path().join("config.json")).expect("a folder");
    let text = check("").expect_err("a folder").to_string();
    assert!(text.contains("`config.json` is a folder there"), "{text}");
    std::fs::remove_dir(dir.path().join("config.json")).expect("a folder");
    for name in ["config.json", "tokenizer.json", "pytorch_model.bin"] {
        write(name);
    }
    let text = check("").expect_err("no weights").to_string();
    assert!(text.contains("but `pytorch_model.bin`"), "{text}");
    assert!(text.contains("hint: convert the model"), "{text}");

    write("model.safetensors");
    check("").expect("a model");
    let base = |base: &str| {
        let errors = check(&format!(", adapter_base = \"{base}\"")).expect_err("no base");
        let key = [(ErrorKind::MissingFile, "model.adapter_base")];
        assert_eq!(kinds(&errors), key);
        errors.to_string()
    };
    let text = base(&path.to_string());
    assert!(text.contains("no adapter folder"), "{text}");
    assert!(base("none").contains("no such folder"));
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        write(name);
    }
    check(&format!(", adapter_base = \"{path}\"")).expect("adapters and their base");
    let errors = refused(
        &with(
            "[model.init]",
            "[model]\nadapter_base = \"m\"\n[model.init]",
        ),
        &[],
    );
    assert_eq!(
        kinds(&errors),
        [(ErrorKind::Conflict, "model.adapter_base")]
    );
}

#[test]
fn chat_prompts_need_a_folder_with_a_chat_template() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("a file");
    };
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        write(name, "");
    }
    let model = format!("model={{ path = {:?} }}", dir.path());
    let recipe = load(GOOD, &[&model, "prompts.chat={}"]).expect("the folder is looked at later");
    assert_eq!(recipe.prompts.chat.as_ref().expect("chat").system, None);
    assert!(
        recipe.to_toml().contains("[prompts.chat]"),
        "{}",
        recipe.to_toml()
    );
    load(GOOD, &[&model])
        .expect("good")
        .check_inputs(Stage::Sft)
        .expect("plain prompts need no template");

    let refuse = || recipe.check_inputs(Stage::Sft).expect_err("no template");
    assert_eq!(kinds(&refuse()), [(ErrorKind::MissingFile, "model.path")]);
    assert!(refuse().to_string().contains("chat_template.jinja"));
    write("tokenizer_config.json", "not JSON");
    refuse();
    write("tokenizer_config.json", "{\"eos_token\": \"a\"}");
    refuse();
    write("tokenizer_config.json", "{\"chat_template\": \"{{ 1 }}\"}");
    recipe.check_inputs(Stage::Sft).expect("a template");
    write(
        "tokenizer_config.json",
        "\u{feff}{\"chat_template\": \"{{ 1 }}\"}",
    );
    recipe
        .check_inputs(Stage::Sft)
        .expect("a byte-order mark is no part of the JSON");
    write("tokenizer_config.json", "{}");
    write("chat_template.jinja", "{{ 1 }}");
    recipe.check_inputs(Stage::Sft).expect("a template");
}

#[test]
fn a_missing_recipe_is_named() {
    let errors = Recipe::load(Path::new("no/such.toml"), &[]).expect_err("no file");
    assert_eq!(errors.errors()[0].kind(), ErrorKind::Unreadable);
    assert!(errors.to_string().contains("--> no/such.toml"), "{errors}");
}

#[test]
fn a_byte_order_mark_is_skipped_and_other_files_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("recipe.toml");
    let load = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("a file");
        Recipe::load(&file, &[])
    };
    let marked = [b"\xef\xbb\xbf", GOOD.as_bytes()].concat();
    load(&marked).expect("a recipe");
    let utf16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, kind) in [
        (&utf16[..], "text in UTF-16"),
        (b"\x1f\x8b\x08\0", "compressed (gzip)"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer",
        ),
        (
            b"name = 'x'\n\xe9 = 1\n",
            "line 2: byte 0xe9 is not valid UTF-8",
        ),
    ] {
        let errors = load(bytes).expect_err("no recipe");
        assert_eq!(errors.errors()[0].kind(), ErrorKind::Unreadable);
        assert!(errors.to_string().contains(kind), "{errors}");
    }
    let errors = Recipe::load(dir.path(), &[]).expect_err("a folder");
    assert!(
        errors.to_string().contains("a folder, not a file"),
        "{errors}"
    );
}

#[test]
fn places_count_characters_not_bytes() {
    let errors = refused("\"naïve\" = 1 # ü\n\"ü\".x = { \"ü\" = 2, ö = 3 }\n", &[]);
    assert_eq!(errors.errors().len(), 1);
    let error = &errors.errors()[0];
    assert_eq!(
        (error.line(), error.column()),
        (Some(2), Some(20)),
        "{errors}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}", set in ".{0,40}") {
        if let Err(errors) = load(&text, &[&set]) {
            prop_assert!(!errors.errors().is_empty());
            prop_assert!(errors.to_string().contains("hint: "));
        }
    }

    #[test]
    fn a_damaged_recipe_is_answered(cut in 0..GOOD.len(), len in 0..80usize, patch in "[\\[\\]=\"a-z0-9_.{}\n]{0,6}") {
        let end = (cut + len).min(GOOD.len());
        let (Some(head), Some(tail)) = (GOOD.get(..cut), GOOD.get(end..)) else { return Ok(()) };
        match load(&format!("{head}{patch}{tail}"), &[]) {
            Ok(recipe) => {
                let again = load(&recipe.to_toml(), &[]).map_err(|errors| TestCaseError::fail(errors.to_string()))?;
                prop_assert_eq!(&*recipe, &*again);
            }
            Err(errors) => prop_assert!(errors.errors().iter().all(|error| !error.reason().is_empty() && !error.hint().is_empty())),
        }
    }
}
