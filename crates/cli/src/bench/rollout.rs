//! `bench rollout`: tokens a second of sampling, and what bounds them.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use asyncthink_engine::{BatchedEngine, EngineSettings, SamplingParams, Temperature};
use asyncthink_model::{Decoder, ModelConfig, Precision};
use asyncthink_protocol::Capacity;
use asyncthink_recipe::{BenchRolloutSection, EngineDtype, Recipe, RolloutWorkload};
use asyncthink_rollout::cache_budget;
use asyncthink_torch::{keep_freed_memory, peak_bytes, reset_peak_memory};
use tch::{Device, Kind};

use super::cost::Cost;
use super::episodes::Episodes;
use super::machine::{self, Ceilings};
use super::meter::MeteredBackend;
use super::model;
use super::plain::{self, Prompts};
use super::report::{Done, Report};
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
    let temperature =
        Temperature::new(bench.temperature).map_err(|error| Failure::input(error.to_string()))?;
    let sampling = SamplingParams::new(temperature);
    let episodes = match bench.workload {
        RolloutWorkload::Plain => None,
        RolloutWorkload::Episodes => {
            let sampling = sampling.clone();
            Some(Episodes::new(bench, capacity, sampling, config.vocab_size)?)
        }
    };

    let device = machine::open(&recipe)?;
    let kind = kind_of(&recipe);
    let ceilings = Ceilings::measure(device, kind)?;
    // After the buffers of that are given back.
    keep_freed_memory();
    let started = Instant::now();
    let decoder = model::load(&recipe, &config, device, kind)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let cost = Cost::new(&config, kind.elt_size_in_bytes());
    let settings = engine_settings(&recipe, bench, capacity, &cost, device)?;
    let mut engine =
        BatchedEngine::new(&config, device, settings).map_err(asyncthink_rollout::Error::from)?;
    let mut rollouts = Rollouts {
        recipe: &recipe,
        bench,
        episodes: episodes.as_ref(),
        sampling,
        decoder: &decoder,
        engine: &mut engine,
    };
    rollouts.warm_up()?;
    reset_peak_memory(device);
    let repeats = (1..=bench.num_repeats)
        .map(|repeat| rollouts.run(repeat))
        .collect::<Result<Vec<_>, _>>()?;
    let peak_bytes = peak_bytes(device);
    let report = Report {
        recipe: &recipe,
        bench,
        config: &config,
        capacity,
        kind,
        device,
        ceilings: ceilings.best(Ceilings::measure(device, kind)?),
        cost,
        max_agents: settings.max_agents,
        engine: &engine,
        repeats,
        peak_bytes,
        load_seconds,
    };
    report.line()?.print(out)
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

/// Settings of the recipe's engine for this workload: no more agents than it has, and no more blocks than these fill.
fn engine_settings(
    recipe: &Recipe,
    bench: &BenchRolloutSection,
    capacity: Capacity,
    cost: &Cost,
    device: Device,
) -> Result<EngineSettings, Failure> {
    let per_sequence = match bench.workload {
        RolloutWorkload::Plain => 1,
        RolloutWorkload::Episodes => capacity.get() as usize,
    };
    let budget = cache_budget(recipe.engine.cache_memory, device)
        .map_err(|reason| Failure::input(format!("`engine.cache_memory`: {reason}")))?;
    let mut settings = asyncthink_rollout::engine_settings(
        &recipe.engine,
        device,
        Precision::F32,
        capacity,
        budget,
    );
    let num_agents = bench.num_prompts * bench.group_size * per_sequence;
    settings.max_agents = settings.max_agents.min(num_agents);
    // A block more for each, which is copied before it is written.
    let sequence_tokens = bench.sequence_tokens(capacity) + 2 * settings.block_size;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of bytes"
    )]
    let needed = cost.cached_token_bytes() as u64 * (settings.max_agents * sequence_tokens) as u64;
    settings.max_cache_bytes = Some(budget.map_or(needed, |budget| budget.min(needed)));
    Ok(settings)
}

/// Number format of sampling, and of the weights, which are not trained here.
fn kind_of(recipe: &Recipe) -> Kind {
    match recipe.engine.dtype {
        EngineDtype::Bf16 => Kind::BFloat16,
        // Training computes in f32.
        EngineDtype::Auto | EngineDtype::F32 => Kind::Float,
    }
}

/// Rollouts over one engine.
struct Rollouts<'a> {
    recipe: &'a Recipe,
    bench: &'a BenchRolloutSection,
    episodes: Option<&'a Episodes<'a>>,
    sampling: SamplingParams,
    decoder: &'a Decoder,
    engine: &'a mut BatchedEngine,
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
        plain::run(&mut backend, &prompts, &self.sampling, new_tokens)?;
        Ok(())
    }

    fn run(&mut self, repeat: usize) -> Result<Done, Failure> {
        let prompts = self.prompts(repeat);
        let mut backend = MeteredBackend::new(self.engine, self.decoder);
        let start = Instant::now();
        let (decoded_tokens, played) = match self.episodes {
            None => {
                let new_tokens = self.bench.new_tokens;
                let sampled = plain::run(&mut backend, &prompts, &self.sampling, new_tokens)?;
                (sampled, Vec::new())
            }
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
