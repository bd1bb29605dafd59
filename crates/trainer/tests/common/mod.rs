//! Whole runs on a tiny problem.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test takes what it needs"
)]

#[path = "../../../../tests/src/tiny.rs"]
pub mod tiny;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use asyncthink_checkpoint::RunLayout;
use asyncthink_metrics::Phase;
use asyncthink_recipe::{Recipe, Stage};
use asyncthink_torch::set_num_threads;
use asyncthink_trainer::{
    Error, GrpoSettings, Observer, Resume, RunOptions, RunOutcome, SftSettings, StepReport,
    StopFlag, run_grpo, run_sft,
};
use fs_err as fs;
use serde_json::Value;

/// Overrides of the shared recipe: short stages that save every few steps.
pub const SETS: [&str; 5] = [
    "seed=3",
    "task.mcd.num_train_problems=5",
    "model.init={ hidden_size = 48, num_layers = 2, num_heads = 2, num_kv_heads = 1, head_dim = 24, \
     intermediate_size = 96, max_position_embeddings = 512 }",
    "sft={ num_steps = 12, batch_tokens = 1500, micro_batch_tokens = 600, save_every_steps = 4, eval_every_steps = 5, \
     optimizer = { learning_rate = 5e-3, warmup_steps = 2, schedule = \"cosine\" } }",
    "grpo={ num_steps = 6, prompts_per_step = 2, group_size = 4, save_every_steps = 2, dump_episodes_every_steps = 3, \
     micro_batch_tokens = 600, max_logprob_mismatch = 1e-4, optimizer = { learning_rate = 1e-3 }, \
     reward = { gate_concurrency = false } }",
];

/// libtorch's generator, which draws initial weights, is one per process.
pub static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub fn alone() -> MutexGuard<'static, ()> {
    // Before anything starts rayon's threads in another number.
    set_num_threads(2).unwrap();
    ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A recipe whose run lies in `dir`, with problems and pairs made.
pub fn recipe(dir: &Path, sets: &[&str]) -> Recipe {
    let run_dir = dir.join("run");
    let run_dir_set = format!("run_dir={}", run_dir.display());
    let sets = tiny::sets(&[&tiny::TRAINING, &SETS, &[&run_dir_set], sets]);
    let recipe = Recipe::parse(tiny::TINY, Path::new("tiny.toml"), &sets).unwrap();
    let coldstart = asyncthink_coldstart::ColdstartSettings::from_recipe(&recipe).unwrap();
    asyncthink_coldstart::run(&coldstart, &run_dir, &mut |_| {}).unwrap();
    recipe
}

/// Raises the stop flag at a moment and collects what it is told.
#[derive(Debug, Default)]
pub struct Watcher {
    pub stop: StopFlag,
    pub stop_after_step: Option<u64>,
    pub stop_in_phase: Option<(Phase, u64)>,
    pub phases_seen: u64,
    pub warnings: Vec<String>,
    pub steps: Vec<u64>,
    /// Step of each checkpoint, and the step after which it was complete.
    pub saved: Vec<(u64, u64)>,
}

impl Observer for Watcher {
    fn phase(&mut self, phase: Phase, _done: u64, _total: u64) {
        if let Some((wanted, count)) = self.stop_in_phase
            && wanted == phase
        {
            self.phases_seen += 1;
            if self.phases_seen == count {
                self.stop.request(15);
            }
        }
    }

    fn step(&mut self, report: &StepReport<'_>) {
        self.steps.push(report.step);
        if self.stop_after_step == Some(report.step) {
            self.stop.request(2);
        }
    }

    fn saved(&mut self, _dir: &Path, step: u64) {
        let done = self.steps.last().copied().unwrap_or_default();
        self.saved.push((step, done));
    }

    fn warning(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }
}

pub fn run(
    recipe: &Recipe,
    stage: Stage,
    resume: Resume,
    watcher: &mut Watcher,
) -> Result<RunOutcome, Error> {
    let options = RunOptions {
        resume,
        ..RunOptions::default()
    };
    run_with(recipe, stage, &options, watcher)
}

pub fn run_with(
    recipe: &Recipe,
    stage: Stage,
    options: &RunOptions,
    watcher: &mut Watcher,
) -> Result<RunOutcome, Error> {
    let stop = watcher.stop.clone();
    match stage {
        Stage::Sft => run_sft(&SftSettings::from_recipe(recipe)?, options, watcher, &stop),
        _ => run_grpo(&GrpoSettings::from_recipe(recipe)?, options, watcher, &stop),
    }
}

pub fn finish(recipe: &Recipe, stage: Stage) -> PathBuf {
    match run(recipe, stage, Resume::Auto, &mut Watcher::default()).unwrap() {
        RunOutcome::Finished { model, .. } => model,
        RunOutcome::Stopped { .. } => panic!("nobody asked to stop"),
    }
}

/// The metrics without the figures that a clock made.
pub fn metrics(recipe: &Recipe, stage: Stage) -> Vec<Value> {
    let text = fs::read_to_string(RunLayout::new(&recipe.run_dir).metrics(stage)).unwrap();
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            assert!(value.as_object_mut().unwrap().remove("timing").is_some());
            value
        })
        .collect()
}

pub fn weights(model: &Path) -> Vec<u8> {
    fs::read(model.join("model.safetensors")).unwrap()
}

pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (source, target) = (
            entry.as_ref().unwrap().path(),
            to.join(entry.unwrap().file_name()),
        );
        if source.is_symlink() {
            fs::os::unix::fs::symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else if source.is_dir() {
            copy_folder(&source, &target);
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}
