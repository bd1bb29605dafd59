//! From measurements to the line that `bench rollout` prints.

use asyncthink_engine::BatchedEngine;
use asyncthink_model::ModelConfig;
use asyncthink_protocol::Capacity;
use asyncthink_recipe::{BenchRolloutSection, Recipe, RolloutWorkload};
use tch::{Device, Kind};

use super::cost::{Cost, Rows};
use super::line::{
    Cache, Driver, EpisodeFacts, Line, Phase, Phases, Repeat, RolloutDetails, Workload, median,
};
use super::machine::{Ceilings, Machine, device_name, dtype_name};
use super::meter::{Measured, Steps};
use crate::failure::Failure;

/// A rollout that was measured.
pub(crate) struct Done {
    pub(crate) seconds: f64,
    pub(crate) decoded_tokens: u64,
    pub(crate) measured: Measured,
    pub(crate) num_answered: usize,
    pub(crate) num_joins: usize,
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

/// All that a line is made from.
pub(crate) struct Report<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) bench: &'a BenchRolloutSection,
    pub(crate) config: &'a ModelConfig,
    pub(crate) capacity: Capacity,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
    pub(crate) ceilings: Ceilings,
    pub(crate) cost: Cost,
    pub(crate) max_agents: usize,
    pub(crate) engine: &'a BatchedEngine,
    pub(crate) repeats: Vec<Done>,
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) load_seconds: f64,
}

impl Report<'_> {
    /// Makes the line of the median repeat.
    ///
    /// # Errors
    /// When nothing was measured.
    pub(crate) fn line(&self) -> Result<Line<Phases, RolloutDetails>, Failure> {
        let Some(median) = median(&self.repeats, Done::tokens_per_s) else {
            return Err(Failure::run("no rollout was measured"));
        };
        let shares = Shares {
            cost: self.cost,
            flops_per_s: self.ceilings.flops_per_s(),
            bytes_per_s: self.ceilings.bytes_per_s(),
        };
        let Measured {
            prefill, decode, ..
        } = median.measured;
        let rows = prefill.rows.plus(decode.rows);
        let seconds = median.seconds;
        Ok(Line {
            bench: "rollout",
            shape: self.recipe.name.clone(),
            parameters: self.config.num_parameters(),
            dtype: dtype_name(self.kind),
            device: device_name(self.device),
            tokens_per_s: median.tokens_per_s(),
            flops_share: shares.flops(&rows, seconds),
            ceiling_tflops: shares.flops_per_s / 1e12,
            bandwidth_share: shares.bytes(&rows, seconds),
            peak_bytes: self.peak_bytes,
            phases: Phases {
                prefill: shares.phase(&prefill),
                decode: shares.phase(&decode),
                driver: Driver {
                    seconds: seconds - prefill.seconds - decode.seconds,
                },
            },
            details: RolloutDetails {
                workload: self.workload(median),
                cache: self.cache(&median.measured),
                repeats: self.repeats.iter().map(Done::line).collect(),
            },
            load_seconds: Some(self.load_seconds),
            ceilings: self.ceilings,
            machine: Machine::here(),
        })
    }

    fn workload(&self, median: &Done) -> Workload {
        let bench = self.bench;
        Workload {
            kind: bench.workload.name(),
            num_prompts: bench.num_prompts,
            group_size: bench.group_size,
            prompt_tokens: bench.prompt_tokens,
            new_tokens: bench.new_tokens,
            share_prompts: bench.share_prompts,
            temperature: bench.temperature,
            max_agents: self.max_agents,
            episodes: (bench.workload == RolloutWorkload::Episodes).then(|| EpisodeFacts {
                capacity: self.capacity.get(),
                forks: bench.forks(self.capacity),
                return_tokens: bench.return_tokens,
                answered: median.num_answered,
                joins: median.num_joins,
            }),
        }
    }

    fn cache(&self, measured: &Measured) -> Cache {
        Cache {
            given_tokens: measured.given_tokens,
            computed_tokens: measured.computed_tokens,
            reused_tokens: measured.reused_tokens,
            recomputed_tokens: measured.recomputed_tokens,
            preemptions: measured.preemptions,
            block_size: self.engine.block_size(),
            blocks: self.engine.num_blocks(),
            peak_blocks: self.engine.stats().peak_blocks,
            block_bytes: self.engine.block_bytes(),
        }
    }
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
