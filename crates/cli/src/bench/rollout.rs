//! `bench rollout`: tokens a second of sampling, and what bounds them.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use asyncthink_engine::{BatchedEngine, EngineSettings, Temperature};
use asyncthink_model::{Decoder, ModelConfig};
use asyncthink_protocol::Capacity;
use asyncthink_recipe::{BenchRolloutSection, Recipe, RolloutWorkload};
use asyncthink_torch::{
    DeviceSpec, keep_freed_memory, open_device, peak_bytes, reset_peak_memory, set_num_threads,
};
use tch::{Device, Kind};

use super::cost::{Cost, Rows};
use super::episodes::Episodes;
use super::line::{Cache, Driver, EpisodeFacts, Phase, Phases, Repeat, RolloutLine, Workload};
use super::machine::{Ceilings, Machine};
use super::meter::{Measured, MeteredBackend, Steps};
use super::model;
use super::plain::{self, Prompts};
use crate::catalogue::catalogue;
use crate::failure::Failure;

/// Tokens of each sequence in the rollout that warms up.
const WARM_UP_TOKENS: usize = 8;

pub(crate) fn run(file: &Path, sets: &[String], out: &mut dyn Write) -> Result<(), Failure> {
    let recipe = Recipe::load_with(file, sets, &catalogue())?;
    let bench = recipe.bench_rollout()?;
    let config = model::config(&recipe)?;
    let capacity = bench.capacity.unwrap_or(recipe.protocol.capacity);
    check_context(bench, capacity, &config)?;
    let episodes = match bench.workload {
        RolloutWorkload::Plain => None,
        RolloutWorkload::Episodes => Some(Episodes::new(bench, capacity, config.vocab_size)?),
    };

    let device = open_device(&recipe.device.to_string().parse::<DeviceSpec>()?)?;
    set_num_threads(recipe.num_threads)?;
    let kind = Kind::Float;
    let ceilings = Ceilings::measure(device, kind)?;
    // After the buffers of that are given back.
    keep_freed_memory();
    let started = Instant::now();
    let decoder = model::load(&recipe, &config, device, kind)?;
    let load_seconds = started.elapsed().as_secs_f64();

    let per_sequence = match bench.workload {
        RolloutWorkload::Plain => 1,
        RolloutWorkload::Episodes => capacity.get() as usize,
    };
    let all_agents = bench.num_prompts * bench.group_size * per_sequence;
    let max_agents = recipe
        .engine
        .max_agents
        .unwrap_or(all_agents)
        .min(all_agents);
    let settings = EngineSettings::new(
        max_agents.max(per_sequence),
        Temperature::new(bench.temperature).map_err(|error| Failure::input(error.to_string()))?,
    );
    let mut engine =
        BatchedEngine::new(&config, device, settings).map_err(asyncthink_rollout::Error::from)?;
    let mut rollouts = Rollouts {
        recipe: &recipe,
        bench,
        episodes: episodes.as_ref(),
        decoder: &decoder,
        engine: &mut engine,
    };
    rollouts.warm_up()?;
    reset_peak_memory(device);
    let repeats = (1..=bench.num_repeats)
        .map(|repeat| rollouts.run(repeat))
        .collect::<Result<Vec<_>, _>>()?;
    let peak_bytes = peak_bytes(device);
    let ceilings = ceilings.best(Ceilings::measure(device, kind)?);

    let shares = Shares {
        cost: Cost::new(&config, kind.elt_size_in_bytes()),
        flops_per_s: ceilings.flops_per_s(),
        bytes_per_s: ceilings.bytes_per_s(),
    };
    let Some(median) = median(&repeats) else {
        return Err(Failure::run("no rollout was measured"));
    };
    let Measured {
        prefill,
        decode,
        given_tokens,
        prefilled_tokens,
    } = median.measured;
    let rows = prefill.rows.plus(decode.rows);
    let seconds = median.seconds;
    let line = RolloutLine {
        bench: "rollout",
        shape: recipe.name.clone(),
        parameters: config.num_parameters(),
        dtype: name_of(kind),
        device: device_name(device),
        tokens_per_s: median.decoded_tokens as f64 / seconds,
        flops_share: shares.flops(&rows, seconds),
        ceiling_tflops: shares.flops_per_s / 1e12,
        bandwidth_share: shares.bytes(&rows, seconds),
        peak_bytes,
        phases: Phases {
            prefill: shares.phase(&prefill),
            decode: shares.phase(&decode),
            driver: Driver {
                seconds: seconds - prefill.seconds - decode.seconds,
            },
        },
        workload: Workload {
            kind: bench.workload.name(),
            num_prompts: bench.num_prompts,
            group_size: bench.group_size,
            prompt_tokens: bench.prompt_tokens,
            new_tokens: bench.new_tokens,
            share_prompts: bench.share_prompts,
            temperature: bench.temperature,
            max_agents,
            episodes: episodes.as_ref().map(|_| EpisodeFacts {
                capacity: capacity.get(),
                forks: bench.forks(capacity),
                return_tokens: bench.return_tokens,
                answered: median.num_answered,
                joins: median.num_joins,
            }),
        },
        cache: Cache {
            given_tokens,
            computed_tokens: prefilled_tokens,
            reused_tokens: given_tokens.saturating_sub(prefilled_tokens),
        },
        repeats: repeats.iter().map(Done::line).collect(),
        load_seconds,
        ceilings,
        machine: Machine::here(),
    };
    let text = serde_json::to_string(&line).map_err(|error| Failure::run(error.to_string()))?;
    writeln!(out, "{text}")?;
    Ok(())
}

/// The context of a folder's model is known only now.
fn check_context(
    bench: &BenchRolloutSection,
    capacity: Capacity,
    config: &ModelConfig,
) -> Result<(), Failure> {
    let num_tokens = bench.sequence_tokens(capacity);
    let limit = config.max_position_embeddings;
    if i64::try_from(num_tokens).unwrap_or(i64::MAX) <= limit {
        return Ok(());
    }
    let message = format!(
        "`[bench.rollout]` makes sequences of up to {num_tokens} tokens, more than the model's context \
         (`max_position_embeddings`) of {limit}"
    );
    Err(Failure::input(message).hint("lower `prompt_tokens`, `new_tokens` or `return_tokens`"))
}

/// Rollouts over one engine.
struct Rollouts<'a> {
    recipe: &'a Recipe,
    bench: &'a BenchRolloutSection,
    episodes: Option<&'a Episodes<'a>>,
    decoder: &'a Decoder,
    engine: &'a mut BatchedEngine,
}

/// A rollout that was measured.
struct Done {
    seconds: f64,
    decoded_tokens: u64,
    measured: Measured,
    num_answered: usize,
    num_joins: usize,
}

impl Done {
    fn tokens_per_s(&self) -> f64 {
        self.decoded_tokens as f64 / self.seconds
    }

    fn line(&self) -> Repeat {
        Repeat {
            seconds: self.seconds,
            decoded_tokens: self.decoded_tokens,
            tokens_per_s: self.tokens_per_s(),
            prefill_seconds: self.measured.prefill.seconds,
            decode_seconds: self.measured.decode.seconds,
        }
    }
}

impl<'a> Rollouts<'a> {
    fn prompts(&self, repeat: usize) -> Prompts<'a> {
        Prompts {
            bench: self.bench,
            vocab_size: u32::try_from(self.decoder.config().vocab_size).unwrap_or(u32::MAX),
            seed: self.recipe.seed,
            repeat,
        }
    }

    /// A few tokens with the batch of the measured rollouts; a whole rollout of episodes, whose shapes change.
    fn warm_up(&mut self) -> Result<(), Failure> {
        if self.episodes.is_some() {
            self.run(0)?;
            return Ok(());
        }
        let prompts = self.prompts(0);
        let mut backend = MeteredBackend::new(self.engine, self.decoder);
        let new_tokens = self.bench.new_tokens.min(WARM_UP_TOKENS);
        plain::run(&mut backend, &prompts, new_tokens)?;
        Ok(())
    }

    fn run(&mut self, repeat: usize) -> Result<Done, Failure> {
        let Self {
            bench,
            episodes,
            decoder,
            ..
        } = *self;
        let prompts = self.prompts(repeat);
        let mut backend = MeteredBackend::new(self.engine, decoder);
        let start = Instant::now();
        let (decoded_tokens, played) = match episodes {
            None => (
                plain::run(&mut backend, &prompts, bench.new_tokens)?,
                Vec::new(),
            ),
            Some(episodes) => {
                let played = episodes.run(&mut backend, &prompts)?;
                let decoded = played.iter().map(|one| one.decoded_tokens() as u64).sum();
                (decoded, played)
            }
        };
        Ok(Done {
            seconds: start.elapsed().as_secs_f64(),
            decoded_tokens,
            measured: backend.measured(),
            num_answered: played.iter().filter(|one| one.answer().is_some()).count(),
            num_joins: played.iter().map(|one| one.num_joins).sum(),
        })
    }
}

/// The repeat of the median rate; of two in the middle, the slower one.
fn median(repeats: &[Done]) -> Option<&Done> {
    let mut order: Vec<&Done> = repeats.iter().collect();
    order.sort_by(|a, b| a.tokens_per_s().total_cmp(&b.tokens_per_s()));
    order.get(order.len().saturating_sub(1) / 2).copied()
}

/// Shares of what the machine could do.
struct Shares {
    cost: Cost,
    flops_per_s: f64,
    bytes_per_s: f64,
}

impl Shares {
    fn flops(&self, rows: &Rows, seconds: f64) -> f64 {
        self.cost.flops(rows) / seconds / self.flops_per_s
    }

    fn bytes(&self, rows: &Rows, seconds: f64) -> f64 {
        self.cost.bytes(rows) / seconds / self.bytes_per_s
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts"
    )]
    fn phase(&self, steps: &Steps) -> Phase {
        let Steps { seconds, rows } = steps;
        let of_time = |value: f64| (*seconds > 0.0).then_some(value);
        Phase {
            seconds: *seconds,
            steps: rows.steps as u64,
            tokens: rows.computed as u64,
            tokens_per_s: of_time(rows.computed / seconds),
            sampled_tokens: rows.sampled as u64,
            flops_share: of_time(self.flops(rows, *seconds)),
            bandwidth_share: of_time(self.bytes(rows, *seconds)),
        }
    }
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        _ => "f32",
    }
}

fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}
