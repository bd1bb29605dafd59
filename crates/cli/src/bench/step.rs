//! `bench step`: whole GRPO steps, by the loop of `grpo` itself.
//!
//! A run of a few steps is set up in a folder of its own and its metrics are read. Nothing of a step is written here again: the
//! recipe's `[grpo]`, `[engine]` and `[precision]` have their usual effect.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use asyncthink_checkpoint::RunLayout;
use asyncthink_data::parquet::write_problems;
use asyncthink_distributed::Ranks;
use asyncthink_model::{Decoder, ModelConfig};
use asyncthink_recipe::{BenchStepSection, Catalogue, ModelSection, Recipe, Stage};
use asyncthink_rollout::Episode;
use asyncthink_tasks::Registry;
use asyncthink_torch::{peak_bytes, reset_peak_memory};
use asyncthink_trainer::{
    GrpoSettings, Observer, RunOptions, StepReport, StopFlag, run_grpo, settle,
};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Kind};
use tempfile::TempDir;

use super::cost::{Cost, Rows};
use super::line::{Line, median};
use super::machine::{self, Ceilings, Machine, device_name, dtype_name};
use super::model;
use super::random_text::{self, RandomText, tokenizer_json};
use crate::catalogue::catalogue;
use crate::failure::Failure;
use crate::preflight;

/// Files that say where a sequence ends, or how text becomes ids: the bench brings its own.
const LEFT_OUT: [&str; 8] = [
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
];

/// A key that `[grpo]` must have, where the recipe has no such section.
const LEARNING_RATE: &str = "grpo.optimizer.learning_rate=1e-6";

pub(crate) fn run(file: &Path, sets: &[String], out: &mut dyn Write) -> Result<(), Failure> {
    let recipe = Recipe::load_with(file, sets, &catalogue())?;
    let bench = recipe.bench_step()?.clone();
    let config = model::config(&recipe)?;
    check(&recipe, &bench, &config)?;

    let device = machine::open(&recipe)?;
    fs::create_dir_all(&recipe.run_dir)?;
    let folder = TempDir::with_prefix_in(".bench-", &recipe.run_dir)?;
    let model_folder = folder.path().join("model");
    write_model(&recipe, &config, &model_folder)?;
    let keys = keys(&bench, &config, &recipe, [folder.path(), &model_folder])?;
    let sets = [&[LEARNING_RATE.to_owned()], sets, &keys].concat();
    let tasks = Registry::builtin().with(&RandomText);
    let recipe = Recipe::load_with(file, &sets, &Catalogue::open(tasks))?;
    write_problem_files(&recipe)?;
    let mut settings = GrpoSettings::from_recipe(&recipe)?;
    // The recipe's stages mean other models.
    settings.initial_model = model_folder;
    settings.sft = None;
    settings.given_reward = Some(alternating);
    settings.run.save.is_off = true;

    // The run says what the machine cannot do.
    let settled = settle(&settings.run, &Ranks::single(), device, &mut ())?;
    let kind = settled.policy.precision.compute();
    let ceilings = Ceilings::measure(device, kind)?;
    let mut watcher = Watcher {
        device,
        peak_bytes: None,
    };
    run_grpo(
        &settings,
        &RunOptions::default(),
        &mut watcher,
        &StopFlag::default(),
    )?;
    let steps = read_steps(&settings.run.layout)?;
    let ceilings = ceilings.best(Ceilings::measure(device, kind)?);
    // The first one warms up.
    let measured = steps.get(1..).unwrap_or_default();
    let tokens = bench.num_prompts * bench.group_size * (bench.prompt_tokens + bench.new_tokens);
    let rate = |step: &Step| tokens as f64 / step.timing.step_seconds;
    let Some(median) = median(measured, rate) else {
        return Err(Failure::run("no step was measured"));
    };
    let work = Work {
        bench: &bench,
        cost: Cost::new(&config, kind.elt_size_in_bytes()),
        ceilings,
        num_trained: config.num_parameters(),
        trains_weights: settings.run.policy.lora.is_none(),
    };
    let line = Line {
        bench: "step",
        shape: recipe.name.clone(),
        parameters: config.num_parameters(),
        dtype: dtype_name(kind),
        device: device_name(device),
        tokens_per_s: rate(median),
        flops_share: work.flops_share(
            work.rollout_flops() + work.training_flops(median),
            median.timing.step_seconds,
        ),
        ceiling_tflops: ceilings.flops_per_s() / 1e12,
        bandwidth_share: work.bandwidth_share(median),
        peak_bytes: watcher.peak_bytes,
        phases: work.phases(median),
        details: Details {
            workload: Workload {
                bench: bench.clone(),
                rows: median.num_rows,
                computed_tokens: median.num_computed_tokens,
                trained_tokens: median.num_trained_tokens,
                micro_batches: median.num_micro_batches,
                decoded_tokens: median.decoded_tokens,
            },
            repeats: measured.iter().map(Repeat::of).collect(),
        },
        load_seconds: None,
        ceilings,
        machine: Machine::here(),
    };
    line.print(out)
}

fn check(recipe: &Recipe, bench: &BenchStepSection, config: &ModelConfig) -> Result<(), Failure> {
    if let ModelSection::Path(dir) = &recipe.model
        && !dir.join("config.json").is_file()
    {
        let message = format!("`model.path` = `{}` holds adapters", dir.display());
        return Err(Failure::input(message)
            .hint("name a whole model; `[model.lora]` trains adapters on it"));
    }
    let (tokens, limit) = (
        bench.prompt_tokens + bench.new_tokens,
        config.max_position_embeddings,
    );
    if i64::try_from(tokens).unwrap_or(i64::MAX) <= limit {
        return Ok(());
    }
    let message = format!(
        "`[bench.step]` makes sequences of {tokens} tokens, more than the model's context (`max_position_embeddings`) of {limit}"
    );
    Err(Failure::input(message).hint("lower `prompt_tokens` or `new_tokens`"))
}

/// A folder of the recipe's model in which no token ends a sequence.
fn write_model(recipe: &Recipe, config: &ModelConfig, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to)?;
    let from = match &recipe.model {
        ModelSection::Path(dir) => {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if !LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                    let target = fs::canonicalize(entry.path())?;
                    fs::os::unix::fs::symlink(target, to.join(entry.file_name()))?;
                }
            }
            dir.as_path()
        }
        ModelSection::Init(_) => {
            let decoder: Decoder = model::load(recipe, config, Device::Cpu, Kind::Float)?;
            decoder.save(to)?;
            to
        }
    };
    let failed = |error: serde_json::Error| Failure::run(error.to_string());
    let text = fs::read(from.join("config.json"))?;
    let mut json: Value = serde_json::from_slice(&text).map_err(failed)?;
    if let Some(keys) = json.as_object_mut() {
        keys.remove("eos_token_id");
    }
    let generation = to.join("generation_config.json");
    if generation.exists() {
        fs::remove_file(generation)?;
    }
    let vocab_size = usize::try_from(config.vocab_size).unwrap_or(1);
    let files = [
        ("config.json", json),
        ("tokenizer.json", tokenizer_json(vocab_size)),
    ];
    for (name, json) in files {
        fs::write(to.join(name), serde_json::to_vec(&json).map_err(failed)?)?;
    }
    Ok(())
}

/// Keys of the run, over those of the recipe.
fn keys(
    bench: &BenchStepSection,
    config: &ModelConfig,
    recipe: &Recipe,
    folders: [&Path; 2],
) -> Result<Vec<String>, Failure> {
    let [run_dir, model] = folders.map(|path| Value::from(path.display().to_string()).to_string());
    let lora = match &recipe.lora {
        Some(lora) => {
            let failed = |error: toml::ser::Error| Failure::run(error.to_string());
            format!(", lora = {}", toml::Value::try_from(lora).map_err(failed)?)
        }
        None => String::new(),
    };
    let BenchStepSection {
        num_prompts,
        group_size,
        prompt_tokens,
        new_tokens,
        ..
    } = *bench;
    let num_steps = bench.num_repeats + 1;
    let mut keys = vec![
        format!("run_dir={run_dir}"),
        format!("model={{ path = {model}{lora} }}"),
        format!(
            "task={{ {} = {{ num_prompts = {}, prompt_tokens = {prompt_tokens}, vocab_size = {} }} }}",
            random_text::NAME,
            // Prompts of different steps share nothing.
            num_prompts * num_steps,
            config.vocab_size
        ),
        "prompts={ organizer = \"{query}\", worker = \"{sub_query}\", query = \"{words}\" }"
            .to_owned(),
        format!("protocol.organizer_max_tokens={new_tokens}"),
        format!("protocol.worker_max_tokens={new_tokens}"),
        format!("grpo.num_steps={num_steps}"),
        format!("grpo.prompts_per_step={num_prompts}"),
        format!("grpo.group_size={group_size}"),
        "grpo.log_every_steps=1".to_owned(),
        // Rewards are given.
        "grpo.reward={ lambda = 0 }".to_owned(),
    ];
    if let Some(tokens) = bench.micro_batch_tokens {
        keys.push(format!("grpo.micro_batch_tokens={tokens}"));
    }
    if let Some(checkpointing) = bench.activation_checkpointing {
        keys.push(format!("grpo.activation_checkpointing={checkpointing}"));
    }
    Ok(keys)
}

/// The problems, as `synth` leaves them.
fn write_problem_files(recipe: &Recipe) -> Result<(), Failure> {
    let synth = RunLayout::new(&recipe.run_dir).synth();
    let problems = recipe.task.problems(recipe.seed);
    let problems = problems.map_err(|error| Failure::run(error.to_string()))?;
    let train = synth.train_problems();
    if let Some(parent) = train.parent() {
        fs::create_dir_all(parent)?;
    }
    write_problems(&train, &problems.train)?;
    Ok(fs::write(synth.manifest(), "{}")?)
}

/// Every group has a mean of about one half: all rows have an advantage.
fn alternating(episode: &Episode) -> f64 {
    (episode.sample_index % 2) as f64
}

/// Sees the most memory of the measured steps.
struct Watcher {
    device: Device,
    peak_bytes: Option<u64>,
}

impl Observer for Watcher {
    fn step(&mut self, report: &StepReport<'_>) {
        if report.step == 1 {
            reset_peak_memory(self.device);
        } else {
            self.peak_bytes = peak_bytes(self.device);
        }
    }

    fn warning(&mut self, message: &str) {
        preflight::warn(&[message.to_owned()]);
    }
}

/// A line of the metrics of a step.
#[derive(Debug, Deserialize)]
struct Step {
    num_rows: usize,
    num_computed_tokens: usize,
    num_trained_tokens: usize,
    num_micro_batches: usize,
    decoded_tokens: usize,
    grad_norm: f64,
    timing: Timing,
}

#[derive(Debug, Deserialize)]
struct Timing {
    step_seconds: f64,
    phase_seconds: BTreeMap<String, f64>,
}

fn read_steps(layout: &RunLayout) -> Result<Vec<Step>, Failure> {
    let path: PathBuf = layout.metrics(Stage::Grpo);
    let failed = |error: serde_json::Error| Failure::run(format!("{}: {error}", path.display()));
    let text = fs::read_to_string(&path)?;
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().map_err(failed)
}

/// The work of a step, beside what the machine could do.
struct Work<'a> {
    bench: &'a BenchStepSection,
    cost: Cost,
    ceilings: Ceilings,
    num_trained: i64,
    trains_weights: bool,
}

impl Work<'_> {
    /// Prompts once a group, and every sampled token but the last, which nothing follows.
    fn rollout(&self) -> Rows {
        let (prompt, new) = (
            self.bench.prompt_tokens as f64,
            self.bench.new_tokens as f64,
        );
        let groups = self.bench.num_prompts as f64;
        let episodes = groups * self.bench.group_size as f64;
        let decoded = new - 1.0;
        let attended = groups * prompt * (prompt + 1.0) / 2.0
            + episodes * decoded * (prompt + f64::midpoint(decoded, 1.0));
        Rows {
            steps: new,
            computed: groups * prompt + episodes * decoded,
            sampled: episodes * new,
            attended,
            cached: episodes * new * (prompt + new / 2.0),
        }
    }

    /// The tokens that are computed: prompts that rows share, once.
    fn training(&self, step: &Step) -> Rows {
        let (prompt, new) = (
            self.bench.prompt_tokens as f64,
            self.bench.new_tokens as f64,
        );
        let (rows, len) = (step.num_rows as f64, prompt + new);
        let computed = step.num_computed_tokens as f64;
        // Each prompt that is left out would have attended to itself.
        let left_out = (rows * len - computed).max(0.0) * f64::midpoint(prompt, 1.0);
        Rows {
            steps: step.num_micro_batches as f64,
            computed,
            sampled: rows * new,
            attended: rows * len * (len + 1.0) / 2.0 - left_out,
            cached: 0.0,
        }
    }

    fn rollout_flops(&self) -> f64 {
        self.cost.flops(&self.rollout())
    }

    fn training_flops(&self, step: &Step) -> f64 {
        let training = self.training(step);
        self.cost.training_flops(&training, self.trains_weights)
    }

    fn flops_share(&self, flops: f64, seconds: f64) -> f64 {
        flops / seconds / self.ceilings.flops_per_s()
    }

    fn bandwidth_share(&self, step: &Step) -> f64 {
        let bytes = self.cost.bytes(&self.rollout())
            + self.cost.training_bytes(&self.training(step))
            + Cost::update_bytes(self.num_trained);
        bytes / step.timing.step_seconds / self.ceilings.bytes_per_s()
    }

    /// The phases of the metrics, and what is in none.
    fn phases(&self, step: &Step) -> BTreeMap<String, Phase> {
        let timing = &step.timing;
        let booked: f64 = timing.phase_seconds.values().sum();
        let other = ("other".to_owned(), timing.step_seconds - booked);
        let all = timing.phase_seconds.clone().into_iter().chain([other]);
        all.map(|(name, seconds)| {
            let work = match name.as_str() {
                "rollout" => Some((step.decoded_tokens, self.rollout_flops())),
                "train" => Some((
                    step.num_rows * (self.bench.prompt_tokens + self.bench.new_tokens),
                    self.training_flops(step),
                )),
                _ => None,
            };
            let phase = Phase {
                seconds,
                tokens_per_s: work.map(|(tokens, _)| tokens as f64 / seconds),
                flops_share: work.map(|(_, flops)| self.flops_share(flops, seconds)),
            };
            (name, phase)
        })
        .collect()
    }
}

#[derive(Debug, Serialize)]
struct Phase {
    seconds: f64,
    /// Tokens decoded, or tokens of rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flops_share: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Details {
    workload: Workload,
    repeats: Vec<Repeat>,
}

/// The recipe's workload, and what came of it.
#[derive(Debug, Serialize)]
struct Workload {
    #[serde(flatten)]
    bench: BenchStepSection,
    rows: usize,
    computed_tokens: usize,
    trained_tokens: usize,
    micro_batches: usize,
    decoded_tokens: usize,
}

#[derive(Debug, Serialize)]
struct Repeat {
    seconds: f64,
    phase_seconds: BTreeMap<String, f64>,
    grad_norm: f64,
}

impl Repeat {
    fn of(step: &Step) -> Self {
        Self {
            seconds: step.timing.step_seconds,
            phase_seconds: step.timing.phase_seconds.clone(),
            grad_norm: step.grad_norm,
        }
    }
}
