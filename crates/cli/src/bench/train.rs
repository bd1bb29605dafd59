//! `bench train`: tokens a second of an update, and its share of what the machine could do.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use asyncthink_data::{TaskTokenizerConfig, task_tokenizer};
use asyncthink_distributed::{AdamW, Ranks};
use asyncthink_gradient::{BatchMetrics, BatchSettings, PolicyModel, accumulate_gradient};
use asyncthink_model::ModelConfig;
use asyncthink_recipe::{BenchTrainSection, ModelSection, Recipe};
use asyncthink_torch::{keep_freed_memory, peak_bytes, reset_peak_memory};
use asyncthink_trainer::memory::Chosen;
use asyncthink_trainer::{Observer, SftSettings, new_optimizer, settle};
use serde::Serialize;
use tch::Device;

use super::cost::{Cost, Rows};
use super::line::{Line, median};
use super::machine::{self, Ceilings, Machine, device_name, dtype_name};
use super::model;
use super::rows::{random_rows, work};
use crate::catalogue::catalogue;
use crate::failure::Failure;
use crate::preflight;

pub(crate) fn run(file: &Path, sets: &[String], out: &mut dyn Write) -> Result<(), Failure> {
    let recipe = Recipe::load_with(file, sets, &catalogue())?;
    let bench = recipe.bench_train()?.clone();
    let config = model::config(&recipe)?;
    check_context(&bench, &config)?;
    let sets = [sft_keys(&bench).as_slice(), sets].concat();
    let recipe = Recipe::load_with(file, &sets, &catalogue())?;
    let mut settings = SftSettings::from_recipe(&recipe)?;

    let device = machine::open(&recipe)?;
    settings.run = settle(&settings.run, &Ranks::single(), device, &mut Warnings)?;
    let kind = settings.run.policy.precision.compute();
    let ceilings = Ceilings::measure(device, kind)?;
    // After the buffers of that are given back.
    keep_freed_memory();
    let started = Instant::now();
    let mut model = load(&recipe, &config, &settings, device)?;
    model.parallelism().apply();
    let optimizer = new_optimizer(&mut model, &settings.run, &Ranks::single(), None)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let mut updates = Updates {
        bench: &bench,
        seed: recipe.seed,
        batch: settings.batch(
            model.parallelism(),
            Chosen::given(
                settings.section.micro_batch_tokens,
                settings.section.activation_checkpointing,
            ),
        ),
        max_grad_norm: settings.section.optimizer.max_grad_norm,
        learning_rate: settings.section.optimizer.learning_rate,
        model: &model,
        optimizer,
    };
    updates.run(0)?;
    reset_peak_memory(device);
    let repeats = (1..=bench.num_repeats as u64)
        .map(|repeat| updates.run(repeat))
        .collect::<Result<Vec<_>, _>>()?;
    let peak_bytes = peak_bytes(device);
    let ceilings = ceilings.best(Ceilings::measure(device, kind)?);
    let Some(median) = median(&repeats, Repeat::tokens_per_s) else {
        return Err(Failure::run("no update was measured"));
    };
    let shares = Shares {
        cost: Cost::new(&config, kind.elt_size_in_bytes()),
        ceilings,
        num_trained: model.num_trained(),
        trains_weights: settings.run.policy.lora.is_none(),
    };
    let line = Line {
        bench: "train",
        shape: recipe.name.clone(),
        parameters: config.num_parameters(),
        dtype: dtype_name(kind),
        device: device_name(device),
        tokens_per_s: median.tokens_per_s(),
        flops_share: shares.flops(&median.work, median.seconds),
        ceiling_tflops: ceilings.flops_per_s() / 1e12,
        bandwidth_share: shares.bytes(median, bench.optimizer),
        peak_bytes,
        phases: shares.phases(median, bench.optimizer),
        details: Details {
            workload: updates.workload(median, shares.num_trained),
            repeats: repeats.iter().map(Repeat::line).collect(),
        },
        load_seconds: Some(load_seconds),
        ceilings,
        machine: Machine::here(),
    };
    line.print(out)
}

/// Says what the machine cannot do.
struct Warnings;

impl Observer for Warnings {
    fn warning(&mut self, message: &str) {
        preflight::warn(&[message.to_owned()]);
    }
}

/// The context of a folder's model is known only now.
fn check_context(bench: &BenchTrainSection, config: &ModelConfig) -> Result<(), Failure> {
    let [_, most] = bench.row_tokens;
    let limit = config.max_position_embeddings;
    if i64::try_from(most).unwrap_or(i64::MAX) <= limit {
        return Ok(());
    }
    let message = format!(
        "`bench.train.row_tokens` makes rows of up to {most} tokens, more than the model's context \
         (`max_position_embeddings`) of {limit}"
    );
    Err(Failure::input(message).hint("lower it"))
}

/// Keys of `[sft]` that the workload asks for, and those that the section must have.
fn sft_keys(bench: &BenchTrainSection) -> Vec<String> {
    let mut keys = vec![
        format!("sft.num_steps={}", i32::MAX),
        "sft.batch_tokens=16".to_owned(),
        "sft.optimizer.learning_rate=1e-5".to_owned(),
    ];
    if let Some(tokens) = bench.micro_batch_tokens {
        keys.push(format!("sft.micro_batch_tokens={tokens}"));
    }
    if let Some(checkpointing) = bench.activation_checkpointing {
        keys.push(format!("sft.activation_checkpointing={checkpointing}"));
    }
    keys
}

fn load(
    recipe: &Recipe,
    config: &ModelConfig,
    settings: &SftSettings,
    device: Device,
) -> Result<PolicyModel, Failure> {
    let (policy, ranks) = (&settings.run.policy, Arc::new(Ranks::single()));
    Ok(match &recipe.model {
        ModelSection::Path(dir) => PolicyModel::load(dir, policy, &ranks, device)?,
        ModelSection::Init(_) => {
            // Any: rows are ids.
            let tokenizer = task_tokenizer(["a"], &TaskTokenizerConfig::default())?;
            PolicyModel::init(config, tokenizer, policy, &ranks, device)?
        }
    })
}

/// Updates of one model.
struct Updates<'a> {
    bench: &'a BenchTrainSection,
    seed: u64,
    batch: BatchSettings,
    max_grad_norm: f64,
    learning_rate: f64,
    model: &'a PolicyModel,
    optimizer: AdamW,
}

impl Updates<'_> {
    fn run(&mut self, repeat: u64) -> Result<Repeat, Failure> {
        let vocab_size = self.model.config().vocab_size;
        let rows = random_rows(self.bench, vocab_size, self.seed, repeat)?;
        let device = self.model.device();
        let started = Instant::now();
        let since = |start: Instant| {
            machine::wait_for(device);
            start.elapsed().as_secs_f64()
        };
        self.optimizer.zero_grad();
        let zero_seconds = since(started);
        let start = Instant::now();
        let metrics = accumulate_gradient(
            self.model.weights(),
            None,
            &rows,
            &self.batch,
            &self.optimizer,
            &mut |_, _| true,
        )?
        .unwrap_or_default();
        let gradient_seconds = since(start);
        if !metrics.loss.is_finite() {
            let message = format!("the loss is {} at update {repeat}", metrics.loss);
            return Err(Failure::run(message));
        }
        let (mut clip_seconds, mut optimizer_seconds) = (0.0, 0.0);
        if self.bench.optimizer {
            let start = Instant::now();
            self.optimizer.clip_grad_norm(self.max_grad_norm)?;
            clip_seconds = since(start);
            let start = Instant::now();
            self.optimizer.step(self.learning_rate)?;
            optimizer_seconds = zero_seconds + since(start);
        }
        Ok(Repeat {
            seconds: started.elapsed().as_secs_f64(),
            gradient_seconds,
            clip_seconds,
            optimizer_seconds,
            work: work(&rows, metrics.num_micro_batches),
            metrics,
        })
    }

    fn workload(&self, median: &Repeat, num_trained: i64) -> Workload {
        let BenchTrainSection {
            num_rows,
            row_tokens,
            trained_share,
            optimizer,
            ..
        } = *self.bench;
        Workload {
            num_rows,
            row_tokens,
            trained_share,
            optimizer,
            micro_batch_tokens: self.batch.micro_batch_tokens,
            activation_checkpointing: self.batch.activation_checkpointing,
            micro_batches: median.metrics.num_micro_batches,
            computed_tokens: median.metrics.num_computed_tokens,
            trained_tokens: median.metrics.num_trained,
            trained_parameters: num_trained,
            workers: self.batch.parallelism.workers_for(num_rows),
        }
    }
}

/// A measured update.
struct Repeat {
    seconds: f64,
    gradient_seconds: f64,
    clip_seconds: f64,
    optimizer_seconds: f64,
    work: Rows,
    metrics: BatchMetrics,
}

impl Repeat {
    fn tokens_per_s(&self) -> f64 {
        self.work.computed / self.seconds
    }

    fn line(&self) -> RepeatLine {
        RepeatLine {
            seconds: self.seconds,
            tokens_per_s: self.tokens_per_s(),
            forward_backward_seconds: self.gradient_seconds,
            clip_seconds: self.clip_seconds,
            optimizer_seconds: self.optimizer_seconds,
            loss: self.metrics.loss,
        }
    }
}

/// Shares of what the machine could do.
struct Shares {
    cost: Cost,
    ceilings: Ceilings,
    num_trained: i64,
    trains_weights: bool,
}

impl Shares {
    fn flops(&self, work: &Rows, seconds: f64) -> f64 {
        let flops = self.cost.training_flops(work, self.trains_weights);
        flops / seconds / self.ceilings.flops_per_s()
    }

    fn bytes(&self, repeat: &Repeat, updates: bool) -> f64 {
        let update = if updates {
            Cost::update_bytes(self.num_trained)
        } else {
            0.0
        };
        let bytes = self.cost.training_bytes(&repeat.work) + update;
        bytes / repeat.seconds / self.ceilings.bytes_per_s()
    }

    fn phases(&self, repeat: &Repeat, updates: bool) -> Phases {
        Phases {
            forward_backward: GradientPhase {
                seconds: repeat.gradient_seconds,
                tokens_per_s: repeat.work.computed / repeat.gradient_seconds,
                flops_share: self.flops(&repeat.work, repeat.gradient_seconds),
            },
            clip: updates.then_some(Phase {
                seconds: repeat.clip_seconds,
            }),
            optimizer: updates.then_some(Phase {
                seconds: repeat.optimizer_seconds,
            }),
        }
    }
}

#[derive(Debug, Serialize)]
struct Phases {
    /// Packing, forward and backward pass.
    forward_backward: GradientPhase,
    /// Norm of the gradient, and cutting it.
    clip: Option<Phase>,
    /// AdamW, and zeroing the gradient.
    optimizer: Option<Phase>,
}

#[derive(Debug, Serialize)]
struct GradientPhase {
    seconds: f64,
    tokens_per_s: f64,
    flops_share: f64,
}

#[derive(Debug, Serialize)]
struct Phase {
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Details {
    workload: Workload,
    repeats: Vec<RepeatLine>,
}

/// The recipe's workload, and what came of it.
#[derive(Debug, Serialize)]
struct Workload {
    num_rows: usize,
    row_tokens: [usize; 2],
    trained_share: f64,
    optimizer: bool,
    micro_batch_tokens: usize,
    activation_checkpointing: bool,
    micro_batches: usize,
    computed_tokens: usize,
    trained_tokens: usize,
    trained_parameters: i64,
    /// Threads that each compute micro-batches of their own.
    workers: usize,
}

#[derive(Debug, Serialize)]
struct RepeatLine {
    seconds: f64,
    tokens_per_s: f64,
    forward_backward_seconds: f64,
    clip_seconds: f64,
    optimizer_seconds: f64,
    loss: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(text: &str) -> BenchTrainSection {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn keys_of_sft_are_set_where_the_workload_names_them() {
        let of = |text: &str| sft_keys(&bench(text))[3..].join(" ");
        assert_eq!(of(r#"{"num_rows": 1, "row_tokens": [2, 3]}"#), "");
        let text = r#"{"num_rows": 1, "row_tokens": [2, 3], "micro_batch_tokens": 64, "activation_checkpointing": true}"#;
        assert_eq!(
            of(text),
            "sft.micro_batch_tokens=64 sft.activation_checkpointing=true"
        );
    }
}
