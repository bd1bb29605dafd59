//! Ranks as processes of this test program.

use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use asyncthink_checkpoint::RunLayout;
use asyncthink_distributed::{RankSettings, Ranks};
use asyncthink_launch::World;
use asyncthink_metrics::Phase;
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_trainer::{
    GrpoSettings, Observer, RunOptions, RunOutcome, SftSettings, StepReport, run_grpo, run_sft,
};
use fs_err as fs;

use crate::common::Watcher;

const RECIPE: &str = "RANKS_TEST_RECIPE";
const STAGE: &str = "RANKS_TEST_STAGE";
const STOP_AFTER: &str = "RANKS_TEST_STOP_AFTER";
pub(crate) const FREEZE: &str = "RANKS_TEST_FREEZE";

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

/// Runs a program that can write no file above 64 KiB, as on a disk that is full.
const ON_A_FULL_DISK: &str = "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\"";

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
    let ranks = Arc::new(
        Ranks::join(
            &World::from_env().unwrap(),
            &RankSettings::of(&recipe),
            stage.name(),
            true,
        )
        .unwrap(),
    );
    let mut watcher = Watcher {
        stop_after_step: env::var(STOP_AFTER).ok().map(|step| step.parse().unwrap()),
        ..Watcher::default()
    };
    let options = RunOptions {
        ranks: Arc::clone(&ranks),
        ..RunOptions::default()
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
        Stage::Sft => run_sft(
            &SftSettings::from_recipe(&recipe).unwrap(),
            &options,
            observer,
            &stop,
        ),
        _ => run_grpo(
            &GrpoSettings::from_recipe(&recipe).unwrap(),
            &options,
            observer,
            &stop,
        ),
    }
    .unwrap_or_else(|error| panic!("{error}"));
    ranks.part().unwrap();
    let has_stopped = matches!(outcome, RunOutcome::Stopped { .. });
    assert_eq!(has_stopped, env::var(STOP_AFTER).is_ok());
}

/// What runs each rank of a stage.
pub(crate) fn commands_of_ranks(recipe: &Recipe, stage: Stage, world_size: usize) -> Vec<Command> {
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
                    "processes::a_rank",
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

/// The same with a full disk for one of them, and with what they say kept.
pub(crate) fn commands_with_a_full_disk(
    recipe: &Recipe,
    stage: Stage,
    world_size: usize,
    full: usize,
) -> Vec<Command> {
    let mut commands = commands_of_ranks(recipe, stage, world_size);
    let plain = &commands[full];
    let mut shell = Command::new("sh");
    shell.args(["-c", ON_A_FULL_DISK]).arg(plain.get_program());
    shell.args(plain.get_args()).stdout(Stdio::null());
    shell.envs(
        plain
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    commands[full] = shell;
    for command in &mut commands {
        command.stderr(Stdio::piped());
    }
    commands
}

/// Runs a stage with so many ranks; with `stop_after`, until the last rank asks to stop.
pub(crate) fn run_ranks(recipe: &Recipe, stage: Stage, world_size: usize, stop_after: Option<u64>) {
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

pub(crate) fn recipe(dir: &Path, sets: &[&str]) -> Recipe {
    let mut all = vec!["num_threads=1", "distributed.timeout_secs=120"];
    all.extend(sets);
    crate::common::recipe(dir, &all)
}

pub(crate) fn model_of(recipe: &Recipe, stage: Stage) -> PathBuf {
    RunLayout::new(&recipe.run_dir)
        .latest_model(stage)
        .canonicalize()
        .unwrap()
}
