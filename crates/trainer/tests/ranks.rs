//! Several ranks as processes of their own: the same numbers as one, and checkpoints for any number of them.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests, which report what they measure"
)]

mod common;

use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use asyncthink_launch::World;
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_torch::{GroupOptions, ProcessGroup, Store, StoreOptions};
use asyncthink_trainer::{
    AdamW, AdamWSettings, CheckpointStore, Observer, Phase, Ranks, Resume, RunLayout, RunOptions,
    RunOutcome, StepReport, run_grpo, run_sft,
};
use common::{Watcher, alone, copy_folder, metrics, weights};
use fs_err as fs;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const RECIPE: &str = "RANKS_TEST_RECIPE";
const STAGE: &str = "RANKS_TEST_STAGE";
const STOP_AFTER: &str = "RANKS_TEST_STOP_AFTER";
const FREEZE: &str = "RANKS_TEST_FREEZE";

/// Stops its own process where `kill -STOP` from elsewhere would: in a phase of the third step.
struct Freezer(Watcher);

impl Observer for Freezer {
    fn phase(&mut self, _phase: Phase, _done: u64, _total: u64) {
        if self.0.steps.len() == 2 {
            // Time for its last sign of life.
            std::thread::sleep(Duration::from_secs(1));
            let pid = std::process::id().to_string();
            Command::new("kill").args(["-STOP", &pid]).status().unwrap();
        }
    }

    fn step(&mut self, report: &StepReport<'_>) {
        self.0.step(report);
    }
}

/// One rank of a run: what the processes that [`run_ranks`] starts do.
#[test]
#[ignore = "started by the other tests"]
fn a_rank() {
    let Ok(path) = env::var(RECIPE) else {
        return;
    };
    let recipe = Recipe::load(Path::new(&path), &[]).unwrap();
    let stage = if env::var(STAGE).unwrap() == "sft" {
        Stage::Sft
    } else {
        Stage::Grpo
    };
    let ranks = Arc::new(Ranks::meet(&World::from_env().unwrap(), &recipe, stage).unwrap());
    let mut watcher = Watcher {
        stop_after_step: env::var(STOP_AFTER).ok().map(|step| step.parse().unwrap()),
        ..Watcher::default()
    };
    let options = RunOptions {
        resume: Resume::Auto,
        ranks: Arc::clone(&ranks),
    };
    let stop = watcher.stop.clone();
    let mut freezer;
    let observer: &mut dyn Observer = if env::var(FREEZE).is_ok() {
        freezer = Freezer(watcher);
        &mut freezer
    } else {
        &mut watcher
    };
    let outcome = match stage {
        Stage::Sft => run_sft(&recipe, &options, observer, &stop),
        _ => run_grpo(&recipe, &options, observer, &stop),
    }
    .unwrap_or_else(|error| panic!("{error}"));
    ranks.part().unwrap();
    let has_stopped = matches!(outcome, RunOutcome::Stopped { .. });
    assert_eq!(has_stopped, env::var(STOP_AFTER).is_ok());
}

/// What runs each rank of a stage.
fn commands_of_ranks(recipe: &Recipe, stage: Stage, world_size: usize) -> Vec<Command> {
    let path = recipe.run_dir.join("ranks.toml");
    fs::write(&path, recipe.to_toml()).unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    (0..world_size)
        .map(|rank| {
            let mut command = Command::new(env::current_exe().unwrap());
            command
                .args([
                    "--exact",
                    "a_rank",
                    "--ignored",
                    "--nocapture",
                    "--test-threads=1",
                ])
                .env(RECIPE, &path)
                .env(STAGE, stage.name())
                .env("RANK", rank.to_string())
                .env("LOCAL_RANK", rank.to_string())
                .env("WORLD_SIZE", world_size.to_string())
                .env("LOCAL_WORLD_SIZE", world_size.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .stdout(Stdio::null());
            command
        })
        .collect()
}

/// Runs a stage with so many ranks; with `stop_after`, until the last rank asks to stop.
fn run_ranks(recipe: &Recipe, stage: Stage, world_size: usize, stop_after: Option<u64>) {
    let ranks: Vec<Child> = commands_of_ranks(recipe, stage, world_size)
        .into_iter()
        .map(|mut command| {
            if let Some(step) = stop_after {
                // All of them, as a launcher's signal would; they need not notice at the same moment.
                command.env(STOP_AFTER, step.to_string());
            }
            command.spawn().unwrap()
        })
        .collect();
    for (rank, mut child) in ranks.into_iter().enumerate() {
        assert!(
            child.wait().unwrap().success(),
            "rank {rank} of {world_size}"
        );
    }
}

fn recipe(dir: &Path, sets: &[&str]) -> Recipe {
    let mut all = vec!["num_threads=1", "distributed.timeout_secs=120"];
    all.extend(sets);
    common::recipe(dir, &all)
}

fn figure(line: &Value, key: &str) -> Option<f64> {
    line[key].as_f64()
}

/// Compares the named figures of all lines.
fn assert_close(expected: &[Value], got: &[Value], keys: &[&str], bound: f64, what: &str) {
    assert_eq!(expected.len(), got.len(), "{what}");
    let mut worst: f64 = 0.0;
    for (a, b) in expected.iter().zip(got) {
        for key in keys {
            let (a, b) = (figure(a, key), figure(b, key));
            let (Some(a), Some(b)) = (a, b) else {
                assert_eq!(a, b, "{what}: {key}");
                continue;
            };
            let difference = (a - b).abs() / a.abs().max(1e-3);
            worst = worst.max(difference);
            assert!(difference < bound, "{what}: `{key}` {a} and {b}");
        }
    }
    eprintln!("{what}: largest relative difference {worst:.1e}");
}

fn model_of(recipe: &Recipe, stage: Stage) -> PathBuf {
    RunLayout::new(&recipe.run_dir)
        .latest_model(stage)
        .canonicalize()
        .unwrap()
}

#[test]
fn sft_is_the_same_with_any_number_of_ranks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "sft.optimizer.learning_rate=1e-3",
        "distributed.bucket_mb=1",
    ];
    let single = recipe(&dir.path().join("1"), &sets);
    run_ranks(&single, Stage::Sft, 1, None);
    let expected = metrics(&single, Stage::Sft);
    let keys = [
        "loss",
        "grad_norm",
        "held_out_loss",
        "learning_rate",
        "num_trained_tokens",
    ];
    for world_size in [2, 4] {
        let many = recipe(&dir.path().join(world_size.to_string()), &sets);
        run_ranks(&many, Stage::Sft, world_size, None);
        let got = metrics(&many, Stage::Sft);
        assert_close(
            &expected,
            &got,
            &keys,
            1e-5,
            &format!("sft, {world_size} ranks"),
        );
    }
}

#[test]
fn grpo_is_the_same_with_any_number_of_ranks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "sft.num_steps=300",
        "sft.save_every_steps=300",
        "grpo.kl_beta=0.01",
        "grpo.prompts_per_step=5",
        "grpo.num_updates_per_rollout=2",
        "grpo.optimizer.learning_rate=1e-4",
    ];
    let single = recipe(&dir.path().join("1"), &sets);
    run_ranks(&single, Stage::Sft, 1, None);
    let begin = copy_of_run(&single, &dir.path().join("begin"));
    run_ranks(&single, Stage::Grpo, 1, None);
    let expected = metrics(&single, Stage::Grpo);
    let episodes = |recipe: &Recipe| {
        let path = RunLayout::new(&recipe.run_dir).episodes(Stage::Grpo, 3);
        let rows = asyncthink_data::parquet::read_episodes(&path).unwrap();
        rows.into_iter()
            .map(|row| (row.prompt_index, row.sample_index, row.text))
            .collect::<Vec<_>>()
    };
    // Losses are differences of small numbers: their rounding is seen against that of the gradient.
    let keys = [
        "grad_norm",
        "reward",
        "eta_ratio",
        "entropy",
        "sampled_nll_nats",
        "num_rows",
        "constant_groups",
        "num_trained_tokens",
        "num_episodes",
    ];
    for world_size in [2, 4] {
        let many = recipe(&dir.path().join(world_size.to_string()), &sets);
        copy_folder(&begin, &many.run_dir.join("sft"));
        run_ranks(&many, Stage::Grpo, world_size, None);
        let got = metrics(&many, Stage::Grpo);
        assert_close(
            &expected,
            &got,
            &keys,
            1e-5,
            &format!("grpo, {world_size} ranks"),
        );
        assert_eq!(episodes(&many), episodes(&single), "{world_size} ranks");
    }
}

/// Keeps what `sft` left, for other runs to begin with.
fn copy_of_run(recipe: &Recipe, to: &Path) -> PathBuf {
    copy_folder(&recipe.run_dir.join("sft"), to);
    to.to_owned()
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["sft.optimizer.learning_rate=1e-3"];
    let straight = recipe(&dir.path().join("straight"), &sets);
    run_ranks(&straight, Stage::Sft, 1, None);
    let expected = metrics(&straight, Stage::Sft);
    let begun = recipe(&dir.path().join("begun"), &sets);
    run_ranks(&begun, Stage::Sft, 4, Some(5));
    let keys = ["loss", "grad_norm", "held_out_loss"];
    for world_size in [1, 2, 3] {
        let resumed = recipe(&dir.path().join(world_size.to_string()), &sets);
        copy_folder(&begun.run_dir.join("sft"), &resumed.run_dir.join("sft"));
        run_ranks(&resumed, Stage::Sft, world_size, None);
        let got = metrics(&resumed, Stage::Sft);
        let what = format!("from 4 ranks to {world_size}");
        assert_close(&expected, &got, &keys, 1e-5, &what);
    }
    // The same number of ranks, stopped and not: to the bit.
    let unbroken = recipe(&dir.path().join("unbroken"), &sets);
    run_ranks(&unbroken, Stage::Sft, 4, None);
    run_ranks(&begun, Stage::Sft, 4, None);
    assert_eq!(metrics(&begun, Stage::Sft), metrics(&unbroken, Stage::Sft));
    assert_eq!(
        weights(&model_of(&begun, Stage::Sft)),
        weights(&model_of(&unbroken, Stage::Sft))
    );
}

#[test]
fn a_stopped_rank_is_named_by_the_one_that_waits_for_it() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "distributed.timeout_secs=3",
        "sft.num_steps=4",
        "sft.save_every_steps=2",
    ];
    let recipe = recipe(dir.path(), &sets);
    run_ranks(&recipe, Stage::Sft, 1, None);
    for (stage, part) in [
        (Stage::Grpo, "sampling"),
        (Stage::Sft, "computing the gradient"),
    ] {
        if stage == Stage::Sft {
            fs::remove_dir_all(recipe.run_dir.join("sft")).unwrap();
        }
        let mut commands = commands_of_ranks(&recipe, stage, 2);
        let mut stopped = commands[1].env(FREEZE, "").spawn().unwrap();
        let waiting = commands[0].stderr(Stdio::piped()).spawn().unwrap();
        let ended = waiting.wait_with_output().unwrap();
        assert!(stopped.try_wait().unwrap().is_none(), "it is only stopped");
        stopped.kill().unwrap();
        stopped.wait().unwrap();
        let text = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success());
        let name = stage.name();
        for said in [
            format!("timed out after 3s on rank 0 of 2 in `{name} step 3: {part}`"),
            "rank 1 gives no sign of life, last seen at collective ".to_owned(),
            format!(" in `{name} step 3: {part}`\n"),
        ] {
            assert!(text.contains(&said), "{said}: {text}");
        }
        // What was done before is there to go on from.
        let saved = CheckpointStore::open(&RunLayout::new(&recipe.run_dir).checkpoints(stage), 2);
        let newest = saved.unwrap().newest().unwrap().checkpoint.unwrap();
        assert_eq!(newest.state.step, 2);
    }
}

fn parameters() -> Vec<(String, Tensor)> {
    let values = |count: i64, factor: f64| {
        let range = Tensor::arange(count, (Kind::Float, Device::Cpu));
        (range * factor).sin().set_requires_grad(false)
    };
    let named = |name: &str, value: Tensor| (name.to_owned(), value.copy().set_requires_grad(true));
    vec![
        named(
            "model.embed_tokens.weight",
            values(70, 0.3).reshape([10, 7]),
        ),
        named("a.weight", values(600, 0.7).reshape([20, 30])),
        named("model.norm.weight", values(33, 1.1)),
        named("b.weight", values(55, 0.2).reshape([5, 11])),
    ]
}

/// Three updates with the gradient of a loss whose terms are dealt to the ranks; returns the parameters, the norms, and the
/// bytes of moments.
fn three_updates(ranks: &Arc<Ranks>) -> (Vec<Tensor>, Vec<f64>, usize) {
    const NUM_TERMS: usize = 12;
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };
    let parameters = parameters();
    // Buckets of 400 bytes: parameters are cut anywhere.
    let mut optimizer = AdamW::new(&parameters, settings, Arc::clone(ranks), 400).unwrap();
    let mut norms = Vec::new();
    for _ in 0..3 {
        optimizer.zero_grad();
        for term in ranks.share_of(NUM_TERMS) {
            let factor = 1.0 + term as f64;
            for (_, parameter) in &parameters {
                (parameter * factor).cos().sum(Kind::Float).backward();
            }
        }
        optimizer.reduce_gradients().unwrap();
        norms.push(optimizer.clip_grad_norm(1.0).unwrap());
        optimizer.step(0.01).unwrap();
    }
    let values = parameters.iter().map(|(_, p)| p.detach().copy()).collect();
    (values, norms, optimizer.moment_bytes())
}

#[test]
fn moments_are_shared_out_and_updates_are_the_same() {
    let _alone = alone();
    let (expected, norms, all_bytes) = three_updates(&Arc::new(Ranks::single()));
    for world_size in [2_usize, 3, 4] {
        let store = Store::serve("127.0.0.1", 0, &StoreOptions::default()).unwrap();
        let port = store.port();
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..world_size)
                .map(|rank| {
                    scope.spawn(move || {
                        let store =
                            Store::connect("127.0.0.1", port, &StoreOptions::default()).unwrap();
                        let options = GroupOptions {
                            rank,
                            world_size,
                            timeout: Duration::from_mins(1),
                            name: "moments".to_owned(),
                        };
                        let group = ProcessGroup::new(&store, Device::Cpu, &options).unwrap();
                        let ranks = Arc::new(Ranks::new(group));
                        let result = three_updates(&ranks);
                        ranks.part().unwrap();
                        result
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let first = &results[0].0;
        for (values, rank_norms, bytes) in &results {
            for (index, value) in values.iter().enumerate() {
                assert!(value.equal(&first[index]), "ranks differ");
                assert!(value.allclose(&expected[index], 1e-5, 1e-6, false));
            }
            for (a, b) in norms.iter().zip(rank_norms) {
                assert!((a - b).abs() / a < 1e-5, "{a} {b}");
            }
            // Up to the padding, which is less than 64 bytes a rank and moment.
            let share = all_bytes.div_ceil(world_size);
            assert!(
                *bytes >= share && *bytes < share + 2 * 64 * world_size,
                "{bytes}"
            );
        }
    }
}
